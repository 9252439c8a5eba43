"""The whole pipeline on a CPU, beside the PyTorch reference, in one run: image files in, the answer's last token out.

    python -m benchmarks.pipeline [--images 100]
    python -m benchmarks.pipeline --preset mini --images 20

The checkpoint is the needle test's, or a synthetic preset; our bundle is exported from it in float32. Both are asked the
same question about the same PNG files, greedily, with the same number of threads, everything else as each does by default.
Prints seconds (median of the repeats), our ratio and where the time goes, then one JSON line; exit status 1 if an answer's
tokens differ.

    ours            `LongLLaVA.generate` on the bundle
    reference       what `python -m examples.needle --reference` asks: the reference in PyTorch, the prompt in chunks

`pixels` is reading files and preprocessing them: of ours the sum over threads that work while other stages do, of the
reference what no other stage took.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.turns import take_turns
from examples.needle.evaluate import MAX_NEW_TOKENS, Said
from examples.needle.oracle import ask_reference
from examples.needle.task import QUESTIONS, Haystack, draw_hay_pictures
from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.reference.model import LongLLaVA as ReferenceLongLLaVA
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.inputs.sources import load_image
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.timings import StageTimer

NEEDLE_CHECKPOINT = Path(__file__).parents[1] / "examples" / "needle" / "checkpoint"
QUESTION = QUESTIONS["mark"]
STAGES = ("pixels", "vision", "projector", "embed", "prefill", "decode")

_OF_THE_REFERENCE = {
    "encode_images": "vision",
    "project": "projector",
    "embed": "embed",
    "decode": None,
}
"""Stage of each method; of `decode`, the number of positions says which."""

Stages = dict[str, float]


@dataclass
class Contestant:
    """One way to answer, and what it took."""

    answer: Callable[[], tuple[Said, Stages]]
    """Returns the answer and the seconds of each stage."""
    tokens: set[tuple[int, ...]] = field(default_factory=set)
    """Those of every answer."""
    seconds: list[float] = field(default_factory=list)
    stages: list[Stages] = field(default_factory=list)

    def run(self) -> Said:
        """Answer once, and keep the time."""
        begin = time.perf_counter()
        said, stages = self.answer()
        self.seconds.append(time.perf_counter() - begin)
        self.stages.append(stages)
        self.tokens.add(said.tokens)
        return said

    def forget_times(self) -> None:
        """Count from here on; answers are kept."""
        self.seconds.clear()
        self.stages.clear()

    def median_stages(self) -> Stages:
        """Return the median seconds of each stage."""
        return {name: statistics.median(each[name] for each in self.stages) for name in STAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line; returns 1 if an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    small = [name for name in PRESETS if name not in ("9b", "53b")]
    parser.add_argument("--preset", choices=small, help="a synthetic checkpoint (default: needle)")
    parser.add_argument("--images", type=int, default=100, help="files shown (default 100)")
    parser.add_argument("--repeats", type=int, default=3, help="of each (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of each (default 2)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        mark, files = write_pictures(folder / "pictures", args.images)
        ways = contestants(folder, args.preset, files, args.threads)
        for way in ways.values():
            said = way.run()
            way.forget_times()
        for way in take_turns(ways.values(), rounds=args.repeats):
            way.run()
    seconds = {name: statistics.median(way.seconds) for name, way in ways.items()}
    stages = {name: way.median_stages() for name, way in ways.items()}
    tokens = set.union(*(way.tokens for way in ways.values()))
    print("\n".join(table(seconds, stages)))
    setting = {name: getattr(args, name) for name in ("images", "repeats", "threads")}
    setting |= {"checkpoint": args.preset or "needle", "prompt_tokens": said.prompt_tokens}
    found = {"mark": mark, "answer": said.text, "same_answers": len(tokens) == 1}
    print(json.dumps(setting | found | {"seconds": seconds, "stages_s": stages}))
    return 0 if len(tokens) == 1 else 1


def write_pictures(folder: Path, count: int) -> tuple[str, list[Path]]:
    """Write a haystack with its needle in the middle as PNG files; returns the mark and the files in order."""
    folder.mkdir()
    stack = Haystack.draw(0, hay=draw_hay_pictures(0, count), depth=1, num_depths=3)
    files = [folder / f"{i:04}.png" for i in range(count)]
    for file, picture in zip(files, stack.pictures, strict=True):
        picture.save(file)
    return stack.mark.text, files


def contestants(
    folder: Path, preset: str | None, files: Sequence[Path], threads: int
) -> dict[str, Contestant]:
    """Load the checkpoint twice, once as a bundle."""
    checkpoint = NEEDLE_CHECKPOINT
    if preset is not None:
        checkpoint = folder / "checkpoint"
        write_checkpoint(checkpoint, preset=preset)
    export_bundle(checkpoint, folder / "bundle", dtype="float32")
    model = LongLLaVA.from_bundle(folder / "bundle", RunOptions(backend="ort", num_threads=threads))
    reference = ask_reference(checkpoint)

    def ours() -> tuple[Said, Stages]:
        answer = model.generate(QUESTION, files, max_new_tokens=MAX_NEW_TOKENS)
        stages = dict(answer.timings)
        said = Said(answer.text, answer.token_ids, answer.prompt_tokens)
        return said, {"pixels": stages.pop("decode_image")} | stages

    def theirs() -> tuple[Said, Stages]:
        begin = time.perf_counter()
        with reference_timings() as timings:
            said = reference(QUESTION, [load_image(f, position=i) for i, f in enumerate(files, 1)])
        stages = timings.by_stage()
        del stages["decode_image"]
        return said, {"pixels": time.perf_counter() - begin - sum(stages.values())} | stages

    return {"ours": Contestant(ours), "reference": Contestant(theirs)}


@contextmanager
def reference_timings() -> Iterator[StageTimer]:
    """Measure the stages of every reference model within the block."""
    timings = StageTimer()

    def measured(method: Callable[..., Any], stage: str | None) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(model: ReferenceLongLLaVA, first: torch.Tensor, *rest: Any) -> Any:
            # a last chunk of one position would count as a step
            name = stage or ("prefill" if first.shape[1] > 1 else "decode")
            with timings.measure(name):
                return method(model, first, *rest)

        return call

    with ExitStack() as stack:
        for name, stage in _OF_THE_REFERENCE.items():
            method = measured(getattr(ReferenceLongLLaVA, name), stage)
            stack.enter_context(mock.patch.object(ReferenceLongLLaVA, name, method))
        yield timings


def table(seconds: Stages, stages: dict[str, Stages]) -> Iterator[str]:
    """Yield the lines for people."""
    yield f"{'':12}{'ours x':>8}{'seconds':>10}" + "".join(f"{name:>11}" for name in STAGES)
    for name, whole in seconds.items():
        cells = "".join(f"{stages[name][stage]:11.3f}" for stage in STAGES)
        yield f"{name:12}{whole / seconds['ours']:8.2f}{whole:10.3f}{cells}"


if __name__ == "__main__":
    sys.exit(main())
