"""Options of every verb that asks a question: what is shown, how it runs, how the answer is generated."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longllava_trt.cli.option_fields import FieldOptions, read_constant
from longllava_trt.cli.options import count, from_zero

if TYPE_CHECKING:
    from longllava_trt.runtime.inputs.media import MediaOptions
    from longllava_trt.runtime.options import RunOptions
    from longllava_trt.runtime.sampling import SamplingParams

__all__ = [
    "KERNELS",
    "MEDIA",
    "RUN",
    "SAMPLING",
    "add_engine_options",
    "add_kernels",
    "add_media_options",
    "add_sampling_options",
    "add_shown_options",
    "add_threads",
    "chosen_media",
    "chosen_run_options",
    "chosen_sampling",
    "kernels_name",
]

RUN = FieldOptions("longllava_trt.runtime.options", "RunOptions")
MEDIA = FieldOptions("longllava_trt.runtime.inputs.media", "MediaOptions")
SAMPLING = FieldOptions("longllava_trt.runtime.sampling", "SamplingParams")

_SIZES = "longllava_trt.runtime.backends.base"
_KERNELS = "longllava_trt.runtime.backends.ort.kernels"
KERNELS: tuple[str, ...] = read_constant(_KERNELS, "KERNELS")
_KERNEL_ALIASES: dict[str, str] = read_constant(_KERNELS, "KERNEL_ALIASES")


def kernels_name(text: str) -> str:
    """Return the present name of a choice of kernels, which may have an old one."""
    return _KERNEL_ALIASES.get(text, text)


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
    MEDIA.add(
        media,
        "--hires",
        "high_resolution",
        help="show each image as an overview and its tiles, each tile costing as much as an image",
        default_text="once",
    )
    MEDIA.add(
        media,
        "--seconds-per-frame",
        "seconds_per_frame",
        metavar="S",
        help="seconds of video for each frame that is shown; 0 shows every frame",
    )
    MEDIA.add(
        media,
        "--frames",
        "max_frames",
        type=count,
        metavar="N",
        help="most frames of a video, evenly spread; 1200 are sensible with a larger --max-context",
    )
    MEDIA.add(
        media,
        "--on-broken",
        "on_broken",
        help="what an image that cannot be used does: stop with an error, or be left out with a note",
    )
    MEDIA.add(
        media,
        "--official-compat",
        "official_compat",
        help="write the original's strings byte for byte, faults included; a video and all images become one clip",
        default_text="the correct form",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add how the answer is generated."""
    sampling = parser.add_argument_group("how the answer is generated")
    SAMPLING.add(
        sampling,
        "--max-new-tokens",
        "max_new_tokens",
        type=count,
        metavar="N",
        help="longest answer, in tokens",
    )
    SAMPLING.add(
        sampling,
        "--min-new-tokens",
        "min_new_tokens",
        type=from_zero,
        metavar="N",
        help="least number of tokens before the model may end its answer",
    )
    SAMPLING.add(
        sampling,
        "--temperature",
        "temperature",
        metavar="T",
        help="0: always the most likely token; above it tokens are drawn, 1 being the model's own distribution",
    )
    SAMPLING.add(
        sampling,
        "--top-k",
        "top_k",
        type=from_zero,
        metavar="K",
        help="draw from the K most likely tokens; 0 for all",
    )
    SAMPLING.add(
        sampling,
        "--top-p",
        "top_p",
        metavar="P",
        help="draw from the fewest tokens whose probabilities reach P",
    )
    SAMPLING.add(
        sampling,
        "--repetition-penalty",
        "repetition_penalty",
        metavar="X",
        help="above 1, tokens already in the answer become less likely",
    )
    SAMPLING.add(
        sampling,
        "--seed",
        "seed",
        type=from_zero,
        metavar="N",
        help="makes a draw repeatable",
        default_text="a fresh one",
    )
    SAMPLING.add(
        sampling,
        "--stop",
        "stop",
        action="append",
        metavar="TEXT",
        help="end the answer before this text; repeat it for more",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add how the bundle is run."""
    engine = parser.add_argument_group("how it runs")
    RUN.add(
        engine,
        "--backend",
        "backend",
        help="ort: ONNX Runtime on the CPU; trt: the engines that 'build' made, on the GPU at hand; kernels: PyTorch with "
        "this project's Triton kernels there, which needs no engines; auto: the first of trt and kernels that runs this "
        "bundle on this machine, else ort ('doctor' says what is usable, -v what was chosen)",
    )
    add_kernels(engine)
    RUN.add(
        engine,
        "--scan",
        "scan",
        help="of --backend kernels; ours: this project's selective scan; mamba-ssm: that package's, but only for the first chunk of "
        "a prompt, since it takes no state to go on from: later chunks and every generated token have ours",
    )
    RUN.add(
        engine,
        "--chunk",
        "chunk_size",
        type=count,
        metavar="N",
        help="prompt positions fed at a time; memory grows with it",
        default_text=_by_device("CHUNK"),
    )
    RUN.add(
        engine,
        "--vision-batch",
        "vision_batch",
        type=count,
        metavar="N",
        help="images encoded at a time",
        default_text=_by_device("VISION_BATCH"),
    )
    RUN.add(
        engine,
        "--max-context",
        "max_context",
        type=count,
        metavar="N",
        help="most positions of prompt and answer together, those of images included",
        default_text="as many as the model was trained for",
    )
    RUN.add(
        engine,
        "--prompt-format",
        "prompt_format",
        metavar="NAME",
        help="chat format of prompts: of LLaVA v0, v1, mistral, llama_2 or chatml, of a checkpoint with a template of its own "
        "template; a wrong name lists those of the model",
        default_text="the checkpoint's own",
    )
    add_threads(engine)


def _by_device(size: str) -> str:
    """Say a default that is the backend's own."""
    on_cpu, on_gpu = read_constant(_SIZES, f"CPU_{size}"), read_constant(_SIZES, f"GPU_{size}")
    return f"{on_cpu} on the CPU, {on_gpu} on a GPU, or the most that its engines take"


def add_kernels(parser: argparse._ActionsContainer) -> None:
    """Add which kernels ONNX Runtime gets."""
    RUN.add(
        parser,
        "--kernels",
        "kernels",
        type=kernels_name,
        choices=KERNELS,
        help="of ort; fast: this project's CPU kernels; onnx: plain ONNX Runtime, slower, with nothing of ours "
        "registered",
    )


def add_threads(parser: argparse._ActionsContainer) -> None:
    """Add the threads of one operator."""
    RUN.add(
        parser,
        "--threads",
        "num_threads",
        type=count,
        metavar="N",
        help="threads of one operator",
        default_text="one a core",
    )


def chosen_media(args: argparse.Namespace) -> MediaOptions:
    """Return how images and videos are shown.

    Raises:
        InputError: If a value is out of range.
    """
    from longllava_trt.runtime.inputs.media import MediaOptions

    return MediaOptions(**MEDIA.values(args))


def chosen_sampling(args: argparse.Namespace) -> SamplingParams:
    """Return how the answer is generated.

    Raises:
        InputError: If a value is out of range; all that are are named.
    """
    from longllava_trt.runtime.sampling import SamplingParams

    return SamplingParams(**SAMPLING.values(args))


def chosen_run_options(args: argparse.Namespace) -> RunOptions:
    """Return how the bundle is run; a verb need not offer every option."""
    from longllava_trt.runtime.options import RunOptions

    return RunOptions(**RUN.values(args))
