"""Decode a video file to frames sampled uniformly over its length, within limits."""

from adatp.video.limits import Limits
from adatp.video.sampling import SHORTEST_EDGE, Clip, sample_frames
from adatp.video.source import VideoError

__all__ = ["SHORTEST_EDGE", "Clip", "Limits", "VideoError", "sample_frames"]
