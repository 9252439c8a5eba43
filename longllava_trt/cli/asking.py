"""Options of every verb that asks a question: what is shown, and how the answer is generated."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from longllava_trt.cli.options import count, from_zero

if TYPE_CHECKING:
    from runtime.media import MediaOptions
    from runtime.sampling import SamplingParams

__all__ = ["add_media_options", "add_sampling_options", "chosen_media", "chosen_sampling"]


def add_media_options(parser: argparse.ArgumentParser) -> None:
    """Add how images and videos are shown."""
    media = parser.add_argument_group("how images and videos are shown")
    media.add_argument(
        "--hires",
        action="store_true",
        help="show each image as an overview and its tiles of 336 pixels, each tile costing as much as an image "
        "(default: once)",
    )
    media.add_argument(
        "--seconds-per-frame",
        type=float,
        default=1.0,
        metavar="S",
        help="one frame for so many seconds of video; 0 for every frame (default: %(default)s)",
    )
    media.add_argument(
        "--frames",
        type=count,
        default=128,
        metavar="N",
        help="most frames of a video, evenly spread; 1200 are sensible with a larger --max-context "
        "(default: %(default)s)",
    )
    media.add_argument(
        "--official-compat",
        action="store_true",
        help="write the original's strings byte for byte, faults included; a video and all images become one clip "
        "(default: the correct form)",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add how the answer is generated."""
    sampling = parser.add_argument_group("how the answer is generated")
    sampling.add_argument(
        "--max-new-tokens",
        type=count,
        default=768,
        metavar="N",
        help="longest answer, in tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--min-new-tokens",
        type=from_zero,
        default=1,
        metavar="N",
        help="the model may not end its answer before so many tokens (default: %(default)s)",
    )
    sampling.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: always the most likely token; above it tokens are drawn, 1 being the model's own distribution "
        "(default: %(default)s)",
    )
    sampling.add_argument(
        "--top-k",
        type=from_zero,
        default=0,
        metavar="K",
        help="draw from the K most likely tokens; 0 for all (default: %(default)s)",
    )
    sampling.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the fewest tokens whose probabilities reach P (default: %(default)s)",
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1, tokens already in the answer become less likely (default: %(default)s)",
    )
    sampling.add_argument(
        "--seed",
        type=from_zero,
        metavar="N",
        help="makes a draw repeatable (default: a fresh one)",
    )
    sampling.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; repeat it for more (default: none)",
    )


def chosen_media(args: argparse.Namespace) -> MediaOptions:
    """Return how images and videos are shown.

    Raises:
        InputError: If a value is out of range.
    """
    from runtime.media import MediaOptions

    return MediaOptions(
        high_resolution=args.hires,
        seconds_per_frame=args.seconds_per_frame,
        max_frames=args.frames,
        official_compat=args.official_compat,
    )


def chosen_sampling(args: argparse.Namespace) -> SamplingParams:
    """Return how the answer is generated.

    Raises:
        InputError: If a value is out of range; all that are are named.
    """
    from runtime.sampling import SamplingParams

    return SamplingParams(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
    )
