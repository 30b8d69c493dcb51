"""What ranks tokens is as exact in bf16 as in fp32. The authors' codes round it to the features' type."""

from itertools import pairwise

import pytest
import torch
from method_references import dycoke, visionzip
from test_methods import make_video
from torch.nn.functional import cosine_similarity, normalize

from adatp.engine.scoring import Scoring
from adatp.engine.sparse_decoding import STEADY, SparseVisual
from adatp.layout import Grid
from adatp.methods.dycoke import DyCoke
from adatp.methods.method import Video
from adatp.methods.segments import mean_per_segment, partition
from adatp.methods.visionzip import VisionZip
from adatp.relevance import similarity

LOW = [torch.bfloat16, torch.float16]
low = pytest.mark.parametrize("dtype", LOW, ids=["bf16", "fp16"])
FRAMES, TOKENS, DIM = 8, 49, 256


def nearly_static(dtype, noise):
    """A clip `[FRAMES, TOKENS, DIM]` in which every token of every frame moves by its own share of the noise."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    return (random(TOKENS, DIM) + noise * random(FRAMES, TOKENS, 1).sigmoid() * random(FRAMES, TOKENS, DIM)).to(dtype)


def authors_dycoke(frame, earlier, kept):
    """The tokens that the first step of DyCoke's published code keeps of a frame."""
    frame, earlier = (normalize(tokens, p=2, dim=1) for tokens in (frame, earlier))
    return cosine_similarity(earlier, frame, dim=1).topk(kept, largest=False).indices


def shares_of_other_tokens(clip, k=0.7):
    """Shares of the kept tokens that are not those of exact cosines: ours and the authors', in every odd frame."""
    kept = int((1 - k) * TOKENS)
    index, _ = DyCoke(k=k).compress(Video(clip, Grid(7, 7)))
    ours, authors = 0, 0
    for frame in range(1, FRAMES, 2):
        exact = cosine_similarity(clip[frame].double(), clip[frame - 1].double(), dim=1).argsort(stable=True)[:kept]
        own = index[index // TOKENS == frame] % TOKENS
        ours += len(set(exact.tolist()) - set(own.tolist()))
        authors += len(set(exact.tolist()) - set(authors_dycoke(clip[frame], clip[frame - 1], kept).tolist()))
    return ours / (FRAMES // 2 * kept), authors / (FRAMES // 2 * kept)


class TestDyCoke:
    def test_keeps_what_exact_cosines_keep_and_the_authors_keep_others(self):
        """The numbers of the methods' page: from one token in a hundred to half of them, the less the clip moves."""
        authors = []
        for noise in (1.0, 0.3, 0.1):
            ours, theirs = shares_of_other_tokens(nearly_static(torch.bfloat16, noise))
            assert ours == 0
            authors.append(theirs)
        assert authors == sorted(authors)
        assert 0 < authors[0] < 0.05 < authors[1] < 0.2 < authors[2] < 0.6

    def test_keeps_what_the_authors_keep_in_fp32(self):
        for noise in (1.0, 0.3, 0.1):
            assert shares_of_other_tokens(nearly_static(torch.float32, noise)) == (0, 0)

    @low
    def test_is_its_reference(self, dtype):
        clip = nearly_static(dtype, 0.3)
        index, values = DyCoke(k=0.6).compress(Video(clip, Grid(7, 7)))
        assert index.tolist() == dycoke(clip.double().tolist(), 0.6)
        assert torch.equal(values, clip.flatten(0, 1)[index])

    @low
    def test_chooses_in_decoding_what_exact_attention_chooses(self, dtype):
        query, key, exact = attention(dtype, length=300)
        visual = torch.arange(300) < 280
        state = SparseVisual(visual[None], torch.tensor([84]))
        state.choose(query, key, None, scale=0.25, scoring=Scoring("reference"))
        chosen = (state.attended[0] & visual).nonzero().flatten().tolist()
        assert chosen == sorted(exact[:280].argsort(descending=True, stable=True)[:84].tolist())
        state.choose(query, key, None, scale=0.25, scoring=Scoring("reference"))
        assert state.attended.all(), f"a cosine of 1 is at least {STEADY}"


def attention(dtype, length, heads=14, groups=2, dim=16):
    """Queries `[1, H, 1, d]` of the last of the tokens, keys `[1, G, L, d]`, and the `[L]` fp64 mean over heads."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, heads, 1, dim, generator=generator).to(dtype)
    key = torch.randn(1, groups, length, dim, generator=generator).to(dtype)
    exact = query[0].double() @ key[0].double().repeat_interleave(heads // groups, 0).mT * dim**-0.5
    return query, key, exact.softmax(-1).mean(0)[0]


class TestAttention:
    """FastV and PyramidDrop rank by the attention of the prompt's last token, AdaTP by that of all its text."""

    LENGTH, KEPT = 6272, 3136

    @low
    def test_ranks_as_exact_attention_does(self, dtype):
        query, key, exact = attention(dtype, self.LENGTH)
        rows, columns = torch.tensor([[self.LENGTH - 1]]), (0, self.LENGTH)
        scores = Scoring("reference")(query, key, rows, columns, scale=0.25)[0]
        assert self.best(scores) == self.best(exact)

    def test_ranks_otherwise_where_the_authors_round_it(self):
        """Their softmax is cast to the features' type, and heads are averaged in it: a few tokens in a thousand."""
        query, key, exact = attention(torch.bfloat16, self.LENGTH)
        logits = query[0] @ key[0].repeat_interleave(7, 0).mT / 4
        weights = logits.softmax(-1, dtype=torch.float32).to(torch.bfloat16)
        authors = set(weights.mean(0)[0].topk(self.KEPT).indices.tolist())
        assert 0 < len(self.best(exact) - authors) < 0.01 * self.KEPT

    def best(self, scores):
        return set(scores.argsort(descending=True, stable=True)[: self.KEPT].tolist())


class TestVisionZip:
    @low
    @pytest.mark.parametrize("newlines", [False, True])
    def test_merges_by_exact_similarity(self, dtype, newlines):
        """Its keys come in fp32, whatever the features are."""
        low_video = make_video(8, 14, newlines, dim=4, dtype=dtype)
        keys = make_video(8, 14, newlines).keys
        video = Video(low_video.tokens, low_video.grid, low_video.saliency, keys)
        index, values = VisionZip(keep=0.4).compress(video)
        parts = (part.tolist() for part in (video.saliency, keys))
        expected, exact = visionzip(video.tokens.tolist(), video.grid, *parts, 0.4, dominant=(27, 32))
        assert index.tolist() == expected
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(values.double(), torch.tensor(exact, dtype=torch.float64), rtol=eps, atol=eps)

    def test_under_autocast_gives_what_it_gives_without(self):
        """Which would run the products of the merge in bf16."""
        video = make_video(4, 7, dim=64)
        index, values = VisionZip(keep=0.4).compress(video)
        with torch.autocast("cpu", torch.bfloat16):
            same_index, same_values = VisionZip(keep=0.4).compress(video)
        assert torch.equal(same_index, index)
        assert torch.equal(same_values, values)


class TestAdaTP:
    @low
    @pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
    def test_segments_and_relevance_are_those_of_exact_cosines(self, dtype, autocast):
        generator = torch.Generator().manual_seed(3)
        base, question = (torch.randn(DIM, generator=generator) for _ in range(2))
        steps = torch.linspace(0.1, 0.5, 40)[:, None] * torch.randn(40, DIM, generator=generator)
        frames = (base + steps).to(dtype)
        text = (question + 0.1 * base).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ids = partition(frames, 0.95)
            relevance = similarity(frames[None], text[None])[0]
            means = mean_per_segment(relevance, ids)
        cosines = [float(cosine_similarity(a.double(), b.double(), dim=0)) for a, b in pairwise(frames)]
        assert min(abs(cosine - 0.95) for cosine in cosines) < 0.005, "some should be near the threshold"
        expected = [0]
        for cosine in cosines:
            expected.append(expected[-1] + (cosine < 0.95))
        assert ids.tolist() == expected
        exact = cosine_similarity(frames.double(), text.double()[None], dim=1)
        torch.testing.assert_close(relevance.double(), exact, rtol=0, atol=2e-7)
        members = [[i for i, own in enumerate(expected) if own == s] for s in range(expected[-1] + 1)]
        torch.testing.assert_close(
            means[: len(members)].double(), torch.stack([exact[own].mean() for own in members]), rtol=0, atol=2e-7
        )
