from dataclasses import FrozenInstanceError, dataclass, fields, replace

import method_references as references
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adatp.layout import Grid, Videos, VideoSize
from adatp.methods.baselines import Pool, Random, Uniform, Unpruned
from adatp.methods.dycoke import DyCoke
from adatp.methods.fastv import FastV
from adatp.methods.method import SparseDecoding, Video
from adatp.methods.pyramiddrop import PyramidDrop
from adatp.methods.visionzip import VisionZip

BEFORE = [VisionZip, DyCoke, Random, Uniform, Pool]
KNOBS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.5, 0.7, 0.9, 0.95, 1.0]))


def make_video(
    frames, rows, newlines=False, exact=False, seed=0, dim=4, dtype=torch.float32, device="cpu", columns=None
):
    """Random features; `exact` ones are of signs or zero, so that many are alike and their cosines are exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator)
        return values.sign() * (torch.rand(*shape[:-1], 1, generator=generator) > 0.1) if exact else values

    columns = rows if columns is None else columns
    tokens = draw(frames, rows, columns, dim)
    if newlines:
        tokens = torch.cat([tokens, draw(frames, rows, 1, dim)], 2)
    saliency = torch.rand(frames, rows * columns, generator=generator)
    saliency = (saliency * 4).floor() if exact else saliency
    keys = draw(frames, rows * columns, 4).to(dtype)
    tokens, saliency, keys = (part.to(device) for part in (tokens.flatten(1, 2).to(dtype), saliency, keys))
    return Video(tokens, Grid(rows, columns + newlines, newlines), saliency, keys)


@st.composite
def videos(draw):
    frames, rows, columns = draw(st.integers(1, 11)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    newlines, exact, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 10_000))
    return make_video(frames, rows, newlines, exact, seed, columns=columns)


def turned(method, value):
    """Any value of the knob, also one that the constructor refuses."""
    return method().with_knob(value)


def unambiguous(cosines):
    """Whether along the last axis no two cosines lie so near that fp32's rounding could swap them."""
    gaps = cosines.double().sort(-1).values.diff(dim=-1)
    return bool(((gaps < 1e-12) | (gaps > 1e-5)).all())


def same(got, want):
    """Whether indices are exactly, and values as nearly as fp32 has them, those of a reference."""
    assert got[0].tolist() == want[0]
    torch.testing.assert_close(got[1], torch.tensor(want[1]), rtol=1e-5, atol=1e-5)


# VisionZip


@settings(deadline=None, max_examples=400)
@given(videos(), KNOBS, st.sampled_from([(27, 32), (1, 2), (1, 8), (1, 1)]))
def test_visionzip_is_its_reference(video, keep, dominant):
    unit = torch.nn.functional.normalize(video.keys.double(), dim=-1)
    assume(unambiguous(unit @ unit.transpose(1, 2)))
    method = replace(turned(VisionZip, max(keep, 1e-12)), dominant=dominant[0] / dominant[1])
    lists = (part.tolist() for part in (video.saliency, video.keys))
    same(method.compress(video), references.visionzip(video.tokens.tolist(), video.grid, *lists, keep, dominant))


def test_visionzip_by_hand():
    """Of 9 patches 6 stay: 3 dominant, and of the others 0, 3, 5, 6, 7 and 8, with a step of 2, 0, 5 and 7."""
    keys = torch.eye(3)[[0, 0, 0, 0, 0, 1, 1, 2, 0]]
    saliency = torch.tensor([0.0, 9, 9, 0, 9, 0, 0, 0, 0])
    tokens = torch.arange(12.0).view(3, 4)
    tokens[:, 3] = -1
    video = Video(tokens.view(1, 12, 1), Grid(3, 4, newlines=True), saliency[None], keys[None])
    index, values = VisionZip(keep=6 / 9, dominant=0.5).compress(video)
    assert index.tolist() == [1, 2, 5, 3, 0, 6, 9, 7]
    # patches 3 and 8 (tokens 4 and 10) join 0, patch 6 (token 8) joins 5, none joins 7
    assert values.flatten().tolist() == [1, 2, 5, -1, 0 + (4 + 10) / 2, 6 + 8, 9, -1]


def test_visionzip_splits_27_to_5():
    """The authors' ratio, exactly, of every budget; a patch that is not merged with others is itself."""
    for rows in (14, 27):
        for left in range(1, rows * rows + 1, 5):
            method = VisionZip(keep=left / rows**2)
            assert method.count(1, Grid(rows, rows)) == left
            assert int(left * method.dominant) == left * 27 // 32


@pytest.mark.parametrize(("left", "dominant"), [(1, 0), (2, 1), (32, 27), (64, 54), (100, 84)])
def test_visionzip_counts_dominant_patches(left, dominant):
    video = make_video(1, 14, dim=8)
    index, values = VisionZip(keep=left / 196).compress(video)
    highest = video.saliency[0].topk(dominant).indices.sort().values
    assert index[:dominant].equal(highest)
    assert values[:dominant].equal(video.tokens[0, highest])
    assert len(index) == left
    assert not (values[dominant:] == video.tokens[0, index[dominant:]]).all(-1).any()  # all of them are merged


@pytest.mark.parametrize("newlines", [False, True])
def test_visionzip_leaves_every_patch_as_it_is(newlines):
    video = make_video(3, 4, newlines)
    index, values = VisionZip(keep=1.0).compress(video)
    assert sorted(index.tolist()) == list(range(len(index))) == list(range(3 * 4 * (4 + newlines)))
    assert values.equal(video.tokens.flatten(0, 1)[index])


def test_visionzip_ranks_in_fp32():
    """Cosines that differ by less than fp16 can tell decide what joins what."""
    keys = torch.tensor([[1, 0], [1, 0.001], [1, 0.002], [0, 0]]).half()
    video = Video(torch.tensor([[[1.0], [2], [4], [8]]]).half(), Grid(2, 2), torch.tensor([[0.0, 0, 0, 1]]), keys[None])
    index, values = VisionZip(keep=0.75, dominant=1 / 3).compress(video)
    assert index.tolist() == [3, 0, 1]
    assert values.flatten().tolist() == [8, 1, 2 + 4]


# DyCoke


@settings(deadline=None, max_examples=400)
@given(videos(), KNOBS)
def test_dycoke_is_its_reference(video, k):
    tokens = video.tokens
    for distance in (1, 2):
        between = torch.nn.functional.cosine_similarity(tokens[distance:].double(), tokens[:-distance].double(), -1)
        assume(unambiguous(between))
    index, values = DyCoke(k=k).compress(video)
    assert index.tolist() == references.dycoke(tokens.tolist(), k)
    assert values.equal(tokens.flatten(0, 1)[index])


@pytest.mark.parametrize(("k", "left"), [(0.7, 3098), (0.9, 2201), (0.95, 1971)])
def test_dycoke_leaves_the_published_numbers(k, left):
    assert DyCoke(k=k).count(32, Grid(14, 14)) == left
    assert len(DyCoke(k=k).compress(make_video(32, 14))[0]) == left


@pytest.mark.parametrize(
    ("frames", "whole"),
    [
        (1, [0]),
        (2, [0]),
        (3, [0, 2]),
        (4, [0, 2]),
        (5, [0, 4]),
        (7, [0, 4, 6]),
        (8, [0, 4, 6]),
        (9, [0, 4, 8]),
        (12, [0, 4, 8, 10]),
    ],
)
def test_dycoke_compares_these_frames(frames, whole):
    """The authors' ranges: of n frames the first step wants i < n - 1 and the second i < n - 4."""
    index, _ = DyCoke(k=1.0).compress(make_video(frames, 2))
    assert (index[::4] // 4).tolist() == whole
    assert index.tolist() == [4 * frame + i for frame in whole for i in range(4)]


def test_dycoke_orders_by_rising_similarity():
    start = torch.tensor([[1.0, 0]]).expand(4, 2)
    turned_by = torch.tensor([0.3, 0.9, 0.1, 0.6])
    later = 5 * torch.stack([turned_by.cos(), turned_by.sin()], 1)  # a length says nothing
    index, values = DyCoke(k=0.25).compress(Video(torch.stack([start, later]), Grid(2, 2)))
    assert index.tolist() == [0, 1, 2, 3, 4 + 1, 4 + 3, 4 + 0]
    assert values.equal(torch.cat([start, later[[1, 3, 0]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dycoke_of_a_still_video_keeps_the_first_tokens(dtype):
    """Equal tokens are equally similar, whatever they are: ties go to the earlier."""
    tokens = make_video(1, 6, dim=896).tokens.expand(6, -1, -1).to(dtype)
    index, _ = DyCoke(k=0.5).compress(Video(tokens, Grid(6, 6)))
    assert index.view(-1, 18)[2].tolist() == list(range(36, 54))
    assert (index % 36).tolist() == [*range(36), *range(18), *range(18), *range(18), *range(36), *range(18)]


def test_dycoke_compares_in_fp32():
    # 512 products of 300 * 300 overflow fp16
    start = torch.full((4, 512), 300.0)
    noise = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    later = start + torch.tensor([90.0, 30, 120, 60])[:, None] * noise
    index, _ = DyCoke(k=0.0).compress(Video(torch.stack([start, later]).half(), Grid(2, 2)))
    assert index[4:].tolist() == [4 + 2, 4 + 0, 4 + 3, 4 + 1]


def test_dycoke_decodes_with_a_share():
    assert DyCoke().decoding == SparseDecoding(3, 1 - 0.7)
    assert DyCoke(layer=5, p=0.25).decoding == SparseDecoding(layer=5, keep=0.75)
    assert DyCoke(p=0.0).decoding is None


def test_dycoke_needs_a_layer_of_the_model():
    DyCoke().check(4)
    DyCoke(p=0.0).check(3)
    with pytest.raises(ValueError, match=r"layer must be a layer of the model, at most 2, got 3"):
        DyCoke().check(3)


# plain ones


@settings(deadline=None, max_examples=200)
@given(videos(), KNOBS)
def test_uniform_is_its_reference(video, keep):
    tokens = video.tokens.flatten(0, 1)
    index, values = turned(Uniform, keep).compress(video)
    assert index.tolist() == references.uniform(len(tokens), keep)
    assert values.equal(tokens[index])


@settings(deadline=None, max_examples=300)
@given(videos(), KNOBS)
def test_pool_is_its_reference(video, keep):
    same(turned(Pool, keep).compress(video), references.pool(video.tokens.tolist(), video.grid, keep))


@pytest.mark.parametrize(
    ("rows", "columns"), [*((side, side) for side in (1, 2, 5, 10, 13, 14, 27)), (1, 9), (9, 1), (4, 7), (12, 20)]
)
def test_pool_finds_the_grid_of_its_reference(rows, columns):
    for step in range(0, 101, 1 if rows == columns else 5):
        r, q = references.pooled_shape(rows, columns, step / 100)
        method = turned(Pool, step / 100)
        assert method.count(3, Grid(rows, columns)) == 3 * r * q
        assert method.count(3, Grid(rows, columns + 1, newlines=True)) == 3 * r * (q + 1)


def test_pool_by_hand():
    """Of 3 x 3 patches to 2 x 2: windows overlap in the middle, and the first two of three begin at its own place."""
    tokens = torch.arange(12.0).view(3, 4)
    tokens[:, 3] = torch.tensor([100.0, 200, 300])
    index, values = Pool(keep=4 / 9).compress(Video(tokens.view(1, 12, 1), Grid(3, 4, newlines=True)))
    assert index.tolist() == [0, 1, 3, 4, 5, 7]
    assert values.flatten().tolist() == [2.5, 3.5, 100, 6.5, 7.5, 200]


def test_random_draws_the_same_each_time_and_without_touching_the_global_generator():
    video = make_video(7, 5)
    before = torch.get_rng_state()
    index, values = Random(keep=0.3, seed=1).compress(video)
    assert torch.get_rng_state().equal(before)
    assert index.equal(Random(keep=0.3, seed=1).compress(video)[0])
    assert not index.equal(Random(keep=0.3, seed=2).compress(video)[0])
    assert (index.diff() > 0).all()
    assert values.equal(video.tokens.flatten(0, 1)[index])


def test_random_reaches_every_token():
    video = make_video(3, 2)
    drawn = torch.cat([Random(keep=0.25, seed=seed).compress(video)[0] for seed in range(400)])
    assert (drawn.bincount(minlength=12) - 100).abs().max() < 40  # 4.6 sigma


@pytest.mark.parametrize("method", [Random, Uniform])
def test_a_share_is_rounded_half_up_and_never_nothing(method):
    assert [method(keep=keep).count(1, Grid(2, 5)) for keep in (0.01, 0.1, 0.25, 0.34, 1.0)] == [1, 1, 3, 3, 10]


def test_unpruned_leaves_everything():
    assert Unpruned().cuts(28) == {}
    assert Unpruned().tokens(0.5, 7) == 7
    assert Unpruned().knob is None


# all of them


@settings(deadline=None, max_examples=400)
@given(videos(), KNOBS, st.sampled_from(BEFORE))
def test_what_is_left(video, value, method):
    index, values = turned(method, value).compress(video)
    frames, total = len(video.tokens), video.tokens[..., 0].numel()
    assert index.dtype == torch.int64
    assert index.shape == (turned(method, value).count(frames, video.grid),)
    assert values.shape == (len(index), video.tokens.shape[-1])
    assert values.dtype == video.tokens.dtype
    assert 1 <= len(set(index.tolist())) == len(index)
    assert 0 <= index.min() <= index.max() < total
    frame = index // video.tokens.shape[1]
    assert (frame.diff() >= 0).all()  # frame after frame
    again = turned(method, value).compress(video)
    assert again[0].equal(index)
    assert again[1].equal(values)


@pytest.mark.parametrize("newlines", [False, True])
@pytest.mark.parametrize("method", BEFORE)
def test_nothing_is_read_from_the_device(method, newlines):
    """On the meta device there is no value that the host could read."""
    video = make_video(6, 3, newlines, device="meta")
    index, values = method().compress(video)
    assert index.is_meta
    assert index.shape == values.shape[:1] == (method().count(6, video.grid),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", BEFORE)
def test_low_precision_tokens_are_averaged_in_fp32(method, dtype):
    low = make_video(4, 5, True, dtype=dtype)
    high = Video(low.tokens.float(), low.grid, low.saliency, low.keys.float())
    (index, values), (expected_index, expected) = method().compress(low), method().compress(high)
    assert values.dtype == dtype
    assert index.equal(expected_index)
    assert values.equal(expected.to(dtype))


@pytest.mark.parametrize("method", BEFORE)
def test_a_higher_knob_never_turns_back(method):
    """What a search for a budget halves: from nothing or nearly nothing to everything, or the other way round."""
    for grid in [Grid(1, 1), Grid(1, 2), Grid(7, 7), Grid(4, 9), Grid(13, 14, newlines=True)]:
        counts = [turned(method, step / 50).count(9, grid) for step in range(51)]
        assert counts == sorted(counts, reverse=method is DyCoke)
        assert max(counts) == 9 * grid.tokens


@pytest.mark.parametrize("method", BEFORE)
def test_every_layer_sees_what_is_left_of_all_videos(method):
    @dataclass
    class Prompt(Videos):
        videos: tuple[VideoSize, ...] = (VideoSize(5, Grid(3, 4)), VideoSize(2, Grid(2, 7)))

    left = method().count(5, Grid(3, 4)) + method().count(2, Grid(2, 7))
    assert method().counts(Prompt(), 4) == [left] * 4


@pytest.mark.parametrize(
    ("method", "setting", "values"),
    [
        (VisionZip, "keep", [0, -0.1, 1.1, float("nan")]),
        (VisionZip, "dominant", [0, -0.1, 1.1, float("nan")]),
        (DyCoke, "k", [-0.1, 1.1, float("nan")]),
        (DyCoke, "layer", [0, -1]),
        (DyCoke, "p", [-0.1, 1, float("nan")]),
        (Random, "keep", [0, -0.1, 1.1, float("nan")]),
        (Random, "seed", [-1, 2**63, 0.5, None]),
        (Uniform, "keep", [0, -0.1, 1.1, float("nan")]),
        (Pool, "keep", [0, -0.1, 1.1, float("nan")]),
    ],
)
def test_a_setting_outside_its_range_is_named(method, setting, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{setting} must be .*, got {value!r}$"):
            method(**{setting: value})


@pytest.mark.parametrize("method", [*BEFORE, Unpruned])
def test_settings(method):
    assert method() == method()
    assert method.knob is None or method.knob in {field.name for field in fields(method)}
    assert all(field.default is not None for field in fields(method))
    with pytest.raises(FrozenInstanceError):
        method().keep = 1


def test_who_reads_the_tower():
    assert [method for method in BEFORE if method.wants_tower] == [VisionZip]


# the references of the methods that prune between layers


@pytest.mark.parametrize(("keep", "left"), [(0.5, 3136), (0.375, 2352), (0.25, 1568)])
def test_fastv_counts_as_its_reference(keep, left):
    assert FastV().tokens(keep, 6272) == left
    for total in (1, 5, 10, 33):
        scores = torch.rand(2, total).tolist()
        assert len(references.fastv(scores, keep)) == FastV().tokens(keep, total)


def test_fastv_reference_by_hand():
    assert references.fastv([[0.4, 0.1, 0.2, 0.4], [0.0, 0.5, 0.1, 0.1]], 0.5) == [1, 3]


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_pyramiddrop_counts_as_its_reference(keep):
    method = PyramidDrop(keep=keep)
    for total in (9, 50, 64):
        stages = references.pyramiddrop(lambda stage, left: [[-float(i) for i in left]], total, keep, 4)
        shares = method.cuts(28).values()
        assert [len(left) for left in stages] == [total, *(method.tokens(share, total) for share in shares)]
        assert all(left == list(range(len(left))) for left in stages)


def test_pyramiddrop_reference_ranks_again_in_every_stage():
    order = {1: [5, 0, 6, 1, 7, 2, 8, 3], 2: [0, 1, 2, 3, 4, 5, 6, 7], 3: [0, 9, 1, 1, 1, 1, 1, 0]}
    stages = references.pyramiddrop(lambda stage, left: [[order[stage][i] for i in left]], 8, 0.5, 4)
    assert stages == [list(range(8)), [0, 2, 4, 6], [4, 6], [4]]
