"""The benchmarks compare what computes the same, by cost models that count right, and print what they have found."""

import json

import pytest
import torch
from rich.console import Console

from bench import bench_compact, bench_score, bench_select, memory
from bench.costs import Cost, Roofs, compact_cost, score_cost, select_cost
from bench.harness import Row
from bench.inputs import Case, biased_scores, compact_inputs, random_generator, score_inputs, select_inputs
from bench.summary import NO_GPU, duration, goals, render, stripped
from bench.timing import DeviceClock

ROOFS = Roofs(copy=1e9, matmul=1e12, exponentials=1e10)
MACHINE = {
    "gpu": None, "cpu": "a CPU", "cores": 2, "threads": 2, "dtype": "float32", "torch": "2", "triton": "3",
}  # fmt: skip
GROUP = "score: OneVision-7B, 32 frames, 130 rows"


def runnable(bench, case):
    """Compilers take too long here."""
    return [name for name in bench.PROVIDERS if name != "compiled" and not bench.reason(case, name)]


@pytest.mark.parametrize("text", [1, 5])
def test_every_score_is_the_reference_s(text):
    case = Case("onevision-0.5b", frames=1, text=text)
    x = score_inputs(case)
    assert {"reference", "eager attention"} <= set(runnable(bench_score, case))
    for name in runnable(bench_score, case):
        bench_score.check(bench_score.PROVIDERS[name](x), bench_score.reference(x))


@pytest.mark.parametrize("scores", ["biased", "uniform", "equal"])
@pytest.mark.parametrize("one_segment", [False, True])
def test_every_selection_is_the_reference_s(scores, one_segment):
    case = Case("llava-video-7b", frames=9, text=3, scores=scores, one_segment=one_segment)
    x = select_inputs(case)
    assert x.quota.shape == (1, 1 if one_segment else 3)
    assert ("topk loop" in runnable(bench_select, case)) == (scores != "equal")
    for name in runnable(bench_select, case):
        assert torch.equal(bench_select.PROVIDERS[name](x), bench_select.reference(x)), name


def test_every_compaction_is_the_reference_s():
    case = Case("onevision-0.5b", frames=5, text=3)
    x = compact_inputs(case)
    assert x.counts[0] < case.length
    for name in runnable(bench_compact, case):
        results = zip(bench_compact.PROVIDERS[name](x), bench_compact.reference(x), strict=True)
        assert all(torch.equal(a, b) for a, b in results), name


def test_costs_counted_by_hand():
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 10, 8)
    # 4 heads x 3 rows x 8 x (10 keys + 6 columns) multiply-adds; 96 + 160 floats, 3 places, 6 scores
    assert score_cost(query, key, (2, 8)) == Cost(4 * (96 + 160) + 8 * 3 + 4 * 6, 2 * 4 * 3 * 8 * 16, 4 * 3 * 16)
    # 5 scores, 7 positions, 7 bytes of mask
    assert select_cost(torch.zeros(1, 5), torch.zeros(1, 7, dtype=torch.int64)) == Cost(5 * 4 + 7 * 8 + 7)
    keep = torch.tensor([[True, False, True]])
    tensors = [torch.zeros(1, 3, 5, dtype=torch.bfloat16), torch.zeros(1, 3, dtype=torch.int64)]
    assert compact_cost(keep, [2], tensors) == Cost(2 * 2 * (5 * 2 + 8) + 3)
    assert ROOFS.seconds(Cost(bytes=2 * 10**9, flops=10**12)) == 2.0
    assert ROOFS.seconds(Cost(bytes=0, flops=3 * 10**12)) == 3.0
    assert ROOFS.seconds(Cost(bytes=1, flops=1, exponentials=4 * 10**10)) == 4.0


def test_scores_are_heavy_tailed_and_biased():
    scores = biased_scores(32, 196, random_generator())
    assert torch.equal(scores, biased_scores(32, 196, random_generator()))
    assert float(scores.sum()) == pytest.approx(1, abs=1e-4)
    assert float(scores.topk(len(scores) // 100).values.sum()) > 0.15  # the highest hundredth
    by_frame = scores.view(32, 196).sum(1)
    assert by_frame[-4:].mean() > 5 * by_frame[10:20].mean()
    assert by_frame[0] > 2 * by_frame[10:20].mean()
    top = scores.topk(len(scores) // 10).indices // 196
    assert float((top >= 28).float().mean()) > 0.6  # the paper saw 86.8 % in one layer
    by_position = scores.view(32, 196).sum(0)
    assert by_position.max() > 4 * by_position.mean()


def rows():
    cost = Cost(bytes=10**6, flops=10**9)
    return [
        Row(GROUP, "triton", median=20e-6, q1=19e-6, q3=22e-6, rounds=50, cost=cost),
        Row(GROUP, "reference", baseline=True, median=2e-3, q1=2e-3, q3=2.1e-3, rounds=50, cost=cost),
        Row(GROUP, "eager attention", reason="needs 98 GB, free 12"),
    ]


def test_the_table_shows_results_and_reasons():
    text = render(rows(), ROOFS, MACHINE)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["reference"].split()[1:3] == ["2.00", "ms"]
    assert "0.0100" in lines["triton"]  # of the reference
    assert "50.0" in lines["triton"]  # 1 MB in 20 us, 10^9 FLOPs in 20 us
    assert "eager attention: not measured, needs 98 GB, free 12" in text
    assert "a CPU: 2 cores, 2 threads, float32, torch 2, triton 3" in text
    assert NO_GPU in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2.00 s"), (0.1234, "123 ms"), (5e-5, "50.0 us"), (999.6e-6, "1000 us")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_durations_in_the_unit_of_another():
    assert duration(2e-3, 0.9e-3, 2.1e-3) == "0.900 - 2.10"


def test_goals_name_the_worst_case():
    score, select, eager, overhead = goals(rows(), Roofs(copy=1e12, matmul=1e14, exponentials=1e12))
    assert "MISSED in 1 of 1" in score
    assert GROUP in score
    assert all("not measured" in line for line in (select, eager, overhead))
    measured = [*rows()[:2], Row(GROUP, "eager attention", median=1e-3)]
    score, _, eager, _ = goals(measured, Roofs(copy=6e10, matmul=1e14, exponentials=1e12))  # the roof is 16.7 us
    assert "met in all 1" in score
    assert "met, least 50.0x" in eager


class FakeEvent:
    """An event of a device on which a millisecond passes with every record."""

    now = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.now += 1
        self.at = FakeEvent.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return end.at - self.at


def test_the_device_clock_counts_what_lies_between_two_readings(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    clock = DeviceClock(cold=False)
    clock()
    clock.reset()  # as after a call that has failed
    starts, ends = zip(*[(clock(), clock()) for _ in range(3)], strict=True)
    assert [end - start for start, end in zip(starts, ends, strict=True)] == pytest.approx([1e-3] * 3)


def test_the_report_names_nobody():
    benchmark = {
        "group": GROUP,
        "params": {"case": Case("onevision-7b")},
        "extra_info": {"provider": "triton", "bytes": 123456},
        "stats": {"median": 1.23456, "data": [1.0] * 100},
    }
    report = {"commit_info": {"id": "abc", "dirty": False, "branch": "b", "project": "p"}, "benchmarks": [benchmark]}
    stripped(report, rows(), ROOFS)
    assert json.loads(json.dumps(report)) == {
        "commit_info": {"id": "abc", "dirty": False},
        "benchmarks": [
            {
                "group": GROUP,
                "extra_info": {"provider": "triton", "bytes": 123456},
                "stats": {"median": 1.235},
            }
        ],
        "roofs": {"copy": 1e9, "matmul": 1e12, "exponentials": 1e10},
        "not_measured": [{"group": GROUP, "provider": "eager attention", "reason": "needs 98 GB, free 12"}],
    }


def test_memory_is_measured_row_by_row(capsys):
    rows = [memory.measure(row, 16) for row in ("unpruned", "1.0")]
    unpruned, pruned = rows
    assert unpruned["cache_bytes_reported"] is None
    assert pruned["cache_bytes_reported"] == pruned["cache_bytes"] < unpruned["cache_bytes"]
    assert 0 < pruned["peak_bytes"] < unpruned["peak_bytes"]
    Console(width=150).print(memory.table({"machine": MACHINE, "frames": 16, "rows": rows}))
    printed = capsys.readouterr().out
    assert "the same" in printed
    assert f"{pruned['cache_bytes'] / unpruned['cache_bytes']:.3f}" in printed


def test_the_peak_is_of_what_is_held_at_a_time():
    held = torch.zeros(1 << 18)  # 1 MiB

    def run():
        first = held + 1
        first = first * 2 + 1  # three at a time
        return first.sum()

    result, peak = memory.with_peak(run, "cpu")
    assert result == 3 << 18
    assert 3 << 20 <= peak < (3 << 20) + 4096
