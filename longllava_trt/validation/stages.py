"""Level stage: each stage on the reference's own inputs, and the decoder's three ways to take a prompt.

Whole, cut at random points, and token by token must give the same, against the reference and, more strictly, against
one another within ONNX Runtime.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from longllava_trt.core.manifest import WEIGHTS_FOLDER
from longllava_trt.core.parity import (
    FLOAT32_MODEL,
    FLOAT32_OPERATOR,
    ParityRow,
    Tolerance,
    compare,
    compare_logits,
    worst_of,
)
from longllava_trt.core.stage_spec import present_name
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.backends.base import StageSession, StepDecoder
from longllava_trt.runtime.model import LongLLaVA as RuntimeLongLLaVA
from longllava_trt.validation.parity_case import ParityCase, array_of, state_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DecoderRun", "StageCase", "kernel_rows", "plain_rows", "run_decoder", "stage_rows"]

_LENGTH = 97
_NUM_CUTS = 4
_SPARE_ROOM = 3
_NUM_IMAGES = 3
_PLAIN_REFUSES_LINKS = (
    "not compared: the weights are symbolic links, which plain ONNX Runtime refuses; export with --weights copy, or "
    "on the checkpoint's own file system"
)


class ImageCase(NamedTuple):
    """Inputs and results of the stages that see images."""

    pixel_values: NDArray[np.float32]
    image_features: NDArray[np.float32]
    image_embeds: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCase:
    """Inputs of every stage, and what the reference makes of them."""

    images: ImageCase | None
    """None for a text model."""
    input_ids: NDArray[np.int64]
    """[1, seq_len]"""
    inputs_embeds: NDArray[np.float32]
    splits: dict[str, tuple[int, ...]]
    """Lengths of the pieces in which the prompt is fed."""
    logits: NDArray[np.float32]
    """After every position. [seq_len, vocab_size]."""
    state: dict[str, NDArray[Any]]
    """After the whole prompt, by input name."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: LongLLaVA, *, seed: int) -> StageCase:
        """Run the reference on random pixels and random tokens."""
        generator = torch.Generator().manual_seed(seed)
        config = model.config
        images = None
        if config.vision is not None:
            side = config.vision.image_size
            pixels = torch.randn(_NUM_IMAGES, 3, side, side, generator=generator)
            features = model.encode_images(pixels)
            images = ImageCase(*map(array_of, (pixels, features, model.project(features))))
        ids = torch.randint(config.decoder.vocab_size, (1, _LENGTH), generator=generator)
        embeds = model.embed(ids)
        output = model.decode(embeds, empty_cache(config.decoder), all_logits=True)
        cuts = 1 + np.random.default_rng(seed).choice(_LENGTH - 1, _NUM_CUTS, replace=False)
        bounds = [0, *sorted(cuts.tolist()), _LENGTH]
        return cls(
            images=images,
            input_ids=array_of(ids),
            inputs_embeds=array_of(embeds),
            splits={
                "whole": (_LENGTH,),
                "chunks": tuple(b - a for a, b in itertools.pairwise(bounds)),
                "steps": (1,) * _LENGTH,
            },
            logits=array_of(output.logits[0]),
            state=state_arrays(output.cache, config.decoder),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRun:
    """Outputs of a decoder for a prompt fed in pieces."""

    positions: NDArray[np.int64]
    """The last of each piece."""
    logits: NDArray[np.float32]
    """After each piece. [pieces, vocab_size]."""
    state: dict[str, NDArray[Any]]


def run_decoder(case: StageCase, decoder: StepDecoder) -> dict[str, DecoderRun]:
    """Feed the prompt in each of the case's ways."""
    runs = {}
    for name, lengths in case.splits.items():
        state = decoder.new_state(capacity=_LENGTH + _SPARE_ROOM)
        pieces = np.split(case.inputs_embeds, np.cumsum(lengths)[:-1], axis=1)
        logits = np.stack([decoder.step(piece, state) for piece in pieces])
        runs[name] = DecoderRun(
            positions=np.cumsum(lengths) - 1, logits=logits, state=state.state_dict(copy=True)
        )
    return runs


def stage_rows(
    case: StageCase, runtime: RuntimeLongLLaVA, runs: dict[str, DecoderRun]
) -> Iterator[ParityRow]:
    """Compare every stage with the reference, then the decoder with itself.

    Args:
        case: Inputs and expected outputs.
        runtime: The bundle, loaded with some kernels.
        runs: From its decoder.
    """
    place = f"stage.{runtime.options.kernels}"
    stages: list[tuple[StageSession, NDArray[Any], NDArray[np.float32]]] = []
    if case.images is not None:
        pixels, features, embeds = case.images
        stages.append((runtime.runner.vision, pixels, features))
        stages.append((runtime.runner.projector, features, embeds))
    stages.append((runtime.runner.embed, case.input_ids, case.inputs_embeds))
    for session, given, want in stages:
        name = session.spec.outputs[0].name
        got = session.run({session.spec.inputs[0].name: given})[name]
        yield compare(f"{place}.{session.spec.name}.{name}", got, want, FLOAT32_MODEL)
    for way, run in runs.items():
        logits = case.logits[run.positions]
        yield from _run_rows(f"{place}.decoder.{way}", run, logits, case.state, FLOAT32_MODEL)
    whole = runs["whole"]
    for way in ("chunks", "steps"):
        last = DecoderRun(
            positions=whole.positions, logits=runs[way].logits[-1:], state=runs[way].state
        )
        yield from _run_rows(
            f"{place}.decoder.{way}==whole", last, whole.logits, whole.state, FLOAT32_OPERATOR
        )


def kernel_rows(
    runs: dict[str, DecoderRun], others: dict[str, DecoderRun], *, name: str
) -> Iterator[ParityRow]:
    """Compare the decoder with itself on other kernels."""
    for way, run in runs.items():
        yield from _run_rows(
            f"stage.{name}.decoder.{way}", run, others[way].logits, others[way].state, FLOAT32_MODEL
        )


def plain_rows(case: StageCase, subject: ParityCase) -> Iterator[ParityRow]:
    """Compare the decoder's file, opened by its path in ONNX Runtime with nothing of ours anywhere near."""
    import onnxruntime

    name = "stage.plain_onnxruntime.decoder.whole"
    weights = subject.bundle / WEIGHTS_FOLDER
    if any(path.is_symlink() for path in weights.rglob("*.safetensors")):
        yield ParityRow.skipped(name, _PLAIN_REFUSES_LINKS)
        return
    record = subject.manifest.stage("decoder")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(subject.bundle / record.file), options, providers=["CPUExecutionProvider"]
    )
    sizes = {"batch": 1, "capacity": _LENGTH}
    feeds: dict[str, NDArray[Any]] = {
        t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], dtype=t.dtype)
        for t in record.spec.inputs[1:]
    }
    names = [t.name for t in record.spec.outputs]
    outputs = session.run(names, {"inputs_embeds": case.inputs_embeds, **feeds})
    found = dict(zip(names, outputs, strict=True))
    run = DecoderRun(
        positions=np.array([_LENGTH - 1]),
        logits=found["logits"][0],
        state={past: found[present_name(past)] for past in case.state},
    )
    yield from _run_rows(name, run, case.logits[-1:], case.state, FLOAT32_MODEL)


def _run_rows(
    name: str,
    run: DecoderRun,
    logits: NDArray[np.float32],
    state: dict[str, NDArray[Any]],
    tolerance: Tolerance,
) -> Sequence[ParityRow]:
    """Compare logits, and all of the carried state in one row."""
    states = [
        compare(present_name(past), run.state[past], want, tolerance)
        for past, want in state.items()
    ]
    return (
        compare_logits(f"{name}.logits", run.logits, logits, tolerance),
        worst_of(f"{name}.state", states),
    )
