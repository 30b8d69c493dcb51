"""What a server tells about its pruning: a line in the log for each request, and counters for Prometheus."""

from typing import Any

from prometheus_client import Counter
from vllm.logger import init_logger

from adatp.engine.cuts import Cuts
from adatp.engine.samples import cut_sample
from adatp.flops import linear_ratio

logger = init_logger("vllm.adatp")  # below vLLM's own, so that it appears with vLLM's settings

# of methods between the decoder's layers
REQUESTS = Counter("adatp:pruned_prefills", "Prefills that were pruned; a preempted request has several.", ["method"])
# of methods before the decoder, whose videos stay in vLLM's caches, for any request
VIDEOS = Counter("adatp:compressed_videos", "Videos that were encoded and pruned before the decoder.", ["method"])
# of both
VISUAL = Counter("adatp:visual_tokens", "Visual tokens of pruned prefills or compressed videos.", ["method"])
KEPT = Counter("adatp:kept_visual_tokens", "Those of them that entered the last decoder layer.", ["method"])
SHARE = Counter(
    "adatp:prefill_flops_share_sum",
    "Sum over pruned prefills of their share of the unpruned FLOPs (linear layers); divide by the prefills.",
    ["method"],
)


class Reports:
    """Counts and logs pruned prefills and compressed videos.

    Args:
        method: name of the method.
        is_first: whether this process tells; with tensor parallelism only one of its processes does.
    """

    def __init__(self, method: str, *, is_first: bool) -> None:
        self._method = method
        self._is_first = is_first

    def add(self, request: str, cuts: Cuts, length: int, question: str | None) -> None:
        """Tell about the finished prefill of a request.

        Args:
            request: id of the request.
            cuts: its cuts.
            length: number of tokens of its prompt.
            question: the question that its frames were compared with; None if they were not.
        """
        if not self._is_first:
            return
        sample = cut_sample(cuts, length, question)
        share = linear_ratio(sample.lengths(), length)
        self._count({REQUESTS: 1, VISUAL: sample.visual_tokens, KEPT: sample.kept[-1], SHARE: share})
        logger.info(
            "%(method)s pruned request %(request)s: %(visual)d visual tokens -> %(kept)d in the last layer, in "
            "%(segments)d segments (%(significant)d significant); %(share).1f %% of the FLOPs of an unpruned prefill "
            "(linear layers)",
            {
                "method": self._method,
                "request": request,
                "visual": sample.visual_tokens,
                "kept": sample.kept[-1],
                "segments": len(sample.segments),
                "significant": sum(segment.significant for segment in sample.segments),
                "share": 100 * share,
            },
        )

    def add_video(self, frames: int, visual: int, kept: int) -> None:
        """Tell about a video that was pruned before the decoder.

        Args:
            frames: number of its frames.
            visual: number of its visual tokens.
            kept: number of those that stay.
        """
        if not self._is_first:
            return
        self._count({VIDEOS: 1, VISUAL: visual, KEPT: kept})
        logger.info("%s pruned a video of %d frames: %d visual tokens -> %d", self._method, frames, visual, kept)

    def _count(self, values: dict[Any, float]) -> None:
        for counter, value in values.items():
            counter.labels(self._method).inc(value)
