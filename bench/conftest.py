"""A fixture that checks and times a provider, and a table of all results at the end."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from bench.costs import Cost, Roofs
from bench.harness import Measure, Row, machine
from bench.inputs import DEVICE
from bench.summary import render, stripped
from bench.timing import DeviceClock, measure_roofs, seconds

ROWS = pytest.StashKey[list[Row]]()
ROOFS = pytest.StashKey[Roofs]()
SECONDS = 0.25 if DEVICE.type == "cuda" else 1.0  # time for each row, if the number of rounds stays within `ROUNDS`
ROUNDS = (10, 100) if DEVICE.type == "cuda" else (3, 50)
LONG = 2.0  # seconds; a longer call needs no second one for the estimate

torch.set_grad_enabled(False)


@pytest.fixture(scope="session")
def roofs(request: pytest.FixtureRequest) -> Roofs:
    return request.config.stash.setdefault(ROOFS, measure_roofs())


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any, roofs: Roofs) -> Measure:
    """Return a function that times a provider."""
    rows = request.config.stash.setdefault(ROWS, [])
    marker: dict[str, Any] = request.node.get_closest_marker("benchmark").kwargs

    def measure(
        run: Callable[[], Any],
        provider: str,
        cache: str = "",
        *,
        baseline: bool = False,
        reason: str = "",
        check: Callable[[Any], None] = lambda result: None,
        cost: Cost | None = None,
    ) -> None:
        names: dict[str, Any] = {"group": marker["group"], "provider": provider, "cache": cache, "baseline": baseline}

        def give_up(reason: str) -> None:
            rows.append(Row(**names, reason=reason))
            pytest.skip(reason)

        if reason:
            give_up(reason)
        if isinstance(marker.get("timer"), DeviceClock):
            marker["timer"].reset()
        try:
            results: list[Any] = []
            estimate = seconds(lambda: results.append(run()))
            check(results.pop())
            if (
                DEVICE.type == "cuda" or provider == "compiled" or estimate < LONG
            ):  # the first call may include a compiler
                estimate = seconds(run)
            rounds = min(max(int(SECONDS / estimate), ROUNDS[0]), ROUNDS[1])
            benchmark.pedantic(run, rounds=rounds, warmup_rounds=1 if rounds > ROUNDS[0] else 0)
        except torch.OutOfMemoryError:
            give_up("out of memory")
        except Exception as error:
            rows.append(Row(**names, reason=f"FAILED, {type(error).__name__}"))
            raise
        if not benchmark.enabled:
            return
        stats = benchmark.stats.stats
        row = Row(**names, median=stats.median, q1=stats.q1, q3=stats.q3, rounds=rounds, cost=cost)
        rows.append(row)
        benchmark.extra_info.update(provider=provider, cache=cache, baseline=baseline, **row.achieved(roofs))
        if cost is not None:
            benchmark.extra_info.update(asdict(cost))

    return measure


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    return machine()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    stripped(output_json, config.stash[ROWS], config.stash[ROOFS])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if ROOFS in config.stash:
        terminalreporter.ensure_newline()
        terminalreporter.write(render(config.stash[ROWS], config.stash[ROOFS], machine()))
