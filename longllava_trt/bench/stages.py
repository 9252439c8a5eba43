"""Each stage alone, on the result of the stage before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longllava_trt.bench.figure import Figure, counted, repeat
from longllava_trt.core.logs import Progress, ProgressEvent

if TYPE_CHECKING:
    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["StageFigure", "measure_stages", "timed"]

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFigure:
    """One stage with one amount of work."""

    stage: str
    amount: int
    unit: str
    """Unit of the amount: `images` or `tokens`."""
    context: int
    """Positions that the decoder had been fed before."""
    call: Figure
    """Milliseconds."""

    @property
    def rate(self) -> float:
        """Amount per second, by the median."""
        return 1e3 * self.amount / self.call.median

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        work = {"stage": self.stage, "amount": self.amount, "unit": self.unit}
        return work | {"context": self.context, "per_s": self.rate, "call": self.call.to_json()}


class _Case(NamedTuple):
    """A call to time, and a call to make before each time."""

    stage: str
    amount: int
    unit: str
    call: Callable[[], object]
    before: Callable[[], object] = lambda: None
    context: int = 0

    @property
    def label(self) -> str:
        """Label in the table."""
        after = f" after {self.context}" if self.context else ""
        return f"{self.stage}, {counted(self.amount, self.unit)}{after}"


def measure_stages(
    model: LongLLaVA, *, warmup: int, repeats: int, progress: Progress | None
) -> list[StageFigure]:
    """Time vision and projector for an image and a batch, embed and decoder for chunk and token.

    Each stage is one figure.
    """
    report = progress or (lambda _: None)
    found: list[StageFigure] = []
    report(ProgressEvent("bench stages", 0, None, "stages"))
    for case in _cases(model):
        samples = repeat(
            partial(timed, case.call, before=case.before),
            warmup=warmup,
            repeats=repeats,
        )
        call = Figure(case.label, "ms", tuple(1e3 * seconds for seconds in samples))
        found.append(
            StageFigure(
                stage=case.stage,
                amount=case.amount,
                unit=case.unit,
                context=case.context,
                call=call,
            )
        )
        report(ProgressEvent("bench stages", len(found), None, "stages", case.label))
    report(ProgressEvent("bench stages", len(found), len(found), "stages"))
    return found


def timed(
    call: Callable[[], object],
    *,
    before: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds of a call, without the call that prepares it."""
    before()
    begin = clock()
    call()
    return clock() - begin


def _cases(model: LongLLaVA) -> Iterator[_Case]:
    random = np.random.default_rng(_SEED)
    if model.runner.form.cutter is not None:
        yield from _image_cases(model, random)
    yield from _text_cases(model, random)


def _image_cases(model: LongLLaVA, random: np.random.Generator) -> Iterator[_Case]:
    sizes = [d for d in model.runner.vision.spec.inputs[0].shape if isinstance(d, int)]
    for batch in sorted({1, model.runner.vision_batch}):
        pixels = {"pixel_values": random.standard_normal((batch, *sizes), dtype=np.float32)}
        yield _Case("vision", batch, "images", partial(model.runner.vision.run, pixels))
        features = model.runner.vision.run(pixels)
        yield _Case("projector", batch, "images", partial(model.runner.projector.run, features))


def _text_cases(model: LongLLaVA, random: np.random.Generator) -> Iterator[_Case]:
    """Yield a chunk as `run` feeds the first, and one token after it."""
    chunk = model.runner.chunker.size_at(0)
    ids = random.integers(model.runner.decoder.vocab_size, size=chunk).tolist()
    embeds = model.runner.embed_tokens(ids)
    for length in sorted({1, chunk}):
        yield _Case("embed", length, "tokens", partial(model.runner.embed_tokens, ids[:length]))
    state = model.runner.backend.new_state(capacity=chunk + 1)
    start = state.snapshot()
    yield _Case(
        "decoder",
        chunk,
        "tokens",
        partial(model.runner.decoder.step, embeds, state),
        before=partial(state.restore, start),
    )
    # the chunk has been timed meanwhile, and the state is after it
    after = state.snapshot()
    yield _Case(
        "decoder",
        1,
        "tokens",
        partial(model.runner.decoder.step, embeds[:, :1], state),
        before=partial(state.restore, after),
        context=chunk,
    )
