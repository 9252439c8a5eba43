"""Options and output of every verb that asks a question: what is shown, how it runs, how the answer is generated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longllava_trt.cli.options import count, from_zero

if TYPE_CHECKING:
    from longllava_trt.runtime.inputs.message import MediaOptions
    from longllava_trt.runtime.model import RunOptions
    from longllava_trt.runtime.sampling import SamplingParams
    from longllava_trt.runtime.text.detokenizer import GenerationOutput

__all__ = [
    "KERNELS",
    "add_engine_options",
    "add_media_options",
    "add_sampling_options",
    "add_shown_options",
    "answer_document",
    "chosen_media",
    "chosen_run_options",
    "chosen_sampling",
    "kernels_name",
    "print_skipped",
]

KERNELS = ("fast", "onnx")


def kernels_name(text: str) -> str:
    """Return the present name of a choice of kernels; `bodies` was the old one of `onnx`."""
    return "onnx" if text == "bodies" else text


def add_shown_options(parser: argparse.ArgumentParser) -> None:
    """Add what is shown."""
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an image; repeat it for more, in the order of the placeholders (default: none)",
    )
    parser.add_argument(
        "--images-dir",
        type=Path,
        metavar="DIR",
        help="every image of a folder, frame2 before frame10, after those of --image (default: none)",
    )
    parser.add_argument(
        "--video",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a video, shown before the text as a clip of frames; repeat it for more (default: none)",
    )


def add_media_options(parser: argparse.ArgumentParser) -> None:
    """Add how images and videos are shown."""
    media = parser.add_argument_group("how images and videos are shown")
    media.add_argument(
        "--hires",
        action="store_true",
        help="show each image as an overview and its tiles, each tile costing as much as an image "
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
        "--on-broken",
        choices=("stop", "skip"),
        default="stop",
        help="what an image that cannot be used does: stop with an error, or be left out with a note "
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


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add how the bundle is run."""
    engine = parser.add_argument_group("how it runs")
    engine.add_argument(
        "--backend",
        choices=("ort", "trt", "kernels"),
        default="ort",
        help="ort: ONNX Runtime on the CPU; trt: the engines that 'build' made, on the GPU at hand; kernels: PyTorch with "
        "this project's Triton kernels there, which needs no engines (default: %(default)s)",
    )
    engine.add_argument(
        "--kernels",
        type=kernels_name,
        choices=KERNELS,
        default="fast",
        help="of ort; fast: this project's CPU kernels; onnx: plain ONNX Runtime, slower, with nothing of ours "
        "registered (default: %(default)s)",
    )
    engine.add_argument(
        "--chunk",
        type=count,
        default=512,
        metavar="N",
        help="prompt positions fed at a time; memory grows with it (default: %(default)s)",
    )
    engine.add_argument(
        "--vision-batch",
        type=count,
        default=4,
        metavar="N",
        help="images encoded at a time (default: %(default)s)",
    )
    engine.add_argument(
        "--max-context",
        type=count,
        default=176_000,
        metavar="N",
        help="most positions of prompt and answer together, those of images included "
        "(default: %(default)s)",
    )
    engine.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="threads of one operator (default: one a core)",
    )


def chosen_media(args: argparse.Namespace) -> MediaOptions:
    """Return how images and videos are shown.

    Raises:
        InputError: If a value is out of range.
    """
    from longllava_trt.runtime.inputs.message import MediaOptions

    return MediaOptions(
        high_resolution=args.hires,
        seconds_per_frame=args.seconds_per_frame,
        max_frames=args.frames,
        official_compat=args.official_compat,
        on_broken=args.on_broken,
    )


def chosen_sampling(args: argparse.Namespace) -> SamplingParams:
    """Return how the answer is generated.

    Raises:
        InputError: If a value is out of range; all that are are named.
    """
    from longllava_trt.runtime.sampling import SamplingParams

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


def chosen_run_options(args: argparse.Namespace) -> RunOptions:
    """Return how the bundle is run."""
    from longllava_trt.runtime.model import RunOptions

    return RunOptions(
        backend=args.backend,
        kernels=args.kernels,
        num_threads=args.threads,
        chunk_size=args.chunk,
        vision_batch=args.vision_batch,
        max_context=args.max_context,
    )


def answer_document(answer: GenerationOutput, *, total_s: float) -> dict[str, Any]:
    """Return an answer for machines."""
    return {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "finish_reason": answer.finish_reason,
        "num_images": answer.num_images,
        "skipped": list(answer.skipped),
        "timings": {
            "total_s": total_s,
            "prefill_s": answer.prefill_s,
            "decode_s": answer.decode_s,
            "decode_tokens_per_s": answer.decode_tokens_per_s,
            "stages_s": dict(answer.timings),
        },
    }


def print_skipped(skipped: Sequence[str]) -> None:
    """Say on stderr which images were left out, and why."""
    for note in skipped:
        print(f"skipped: {note}", file=sys.stderr)
