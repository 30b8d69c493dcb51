"""`adatp calibrate`: how tau_s divides videos into segments on a model."""

import argparse
import json
from typing import Any

from adatp.cli import options
from adatp.errors import InputError


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    calibrate = commands.add_parser(
        "calibrate",
        help="Find the tau_s that gives a number of segments.",
        description="Print how alike adjacent frames of videos are to a model (the cosines that AdaTP compares with "
        "tau_s), how many segments that gives, and the tau_s that gives a wanted number of them.",
    )
    calibrate.add_argument("videos", nargs="+", metavar="VIDEO", help="Path of a video file.")
    calibrate.add_argument(
        "--segments",
        type=options.real,
        metavar="N",
        help="Wanted mean number of segments per video (default: one for every 4 frames that the decoder sees).",
    )
    calibrate.add_argument(
        "--frames", type=options.whole, default=32, help="Number of frames to sample from each video (default: 32)."
    )
    options.add_limits(calibrate)
    options.add_json(calibrate)
    options.add_model(calibrate)
    calibrate.set_defaults(command=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    options.require_positive(arguments, "frames")
    if arguments.segments is not None and not 1 <= arguments.segments < float("inf"):
        raise InputError(f"--segments must be a number of at least 1, got {arguments.segments}")
    with options.progress() as progress:
        from adatp.evaluation.calibration import calibrate
        from adatp.evaluation.measure import frame_features, with_relevance
        from adatp.evaluation.session import decode
        from adatp.tables.calibration import calibration_to_dict, print_calibration

        options.device_of(arguments)
        limits, clips = options.limits_of(arguments), []
        for video in arguments.videos:
            progress.tell(f"decoding {video}")
            clips.append(decode(video, arguments.frames, limits)[0])
        loaded = with_relevance(options.load_model(arguments, progress.tell))
        features = []
        for video, clip in zip(arguments.videos, clips, strict=True):
            progress.tell(f"encoding {video}")
            features.append(frame_features(loaded, clip))
        found = calibrate(features, arguments.segments, aligned=loaded.relevance is not None)
    told = [f"{video}: {clip.note}" for video, clip in zip(arguments.videos, clips, strict=True) if clip.note]
    notes = [*([loaded.note] if loaded.note else []), *dict.fromkeys(told), *progress.notes]
    if arguments.json:
        print(json.dumps(calibration_to_dict(loaded.name, arguments.videos, found, notes), allow_nan=False))
    else:
        print_calibration(loaded.name, arguments.videos, found, notes)
    return 0
