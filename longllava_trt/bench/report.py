"""Results of a benchmark: a table for people, plain data with every sample for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from longllava_trt.bench.end_to_end import AnswerFigures
from longllava_trt.bench.figure import counted, table_head, written
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.stages import StageFigure

if TYPE_CHECKING:
    from longllava_trt.runtime.model import RunOptions

__all__ = ["BenchReport"]

_NOTES = (
    "(1) summed over threads, which work beside the other stages",
    "decode loop's own time: what a token costs outside ONNX Runtime's calls",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All figures, with machine and bundle."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    bundle: Mapping[str, Any]
    settings: BenchSettings
    options: RunOptions
    """As they were used, without `auto`."""
    memory_method: str
    stages: tuple[StageFigure, ...]
    answers: tuple[AnswerFigures, ...]
    """Answers, fewest images first."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        settings = asdict(self.settings) | {"images": [str(path) for path in self.settings.images]}
        return {
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "bundle": dict(self.bundle),
            "settings": settings | {"run": asdict(self.options)},
            "memory_method": self.memory_method,
            "stages": [stage.to_json() for stage in self.stages],
            "answers": [
                {
                    "num_images": answer.num_images,
                    "prompt_tokens": answer.prompt_tokens,
                    "figures": {name: f.to_json() for name, f in answer.figures.items()},
                }
                for answer in self.answers
            ],
        }

    def lines(self) -> Iterator[str]:
        """Yield the table: machine, settings, each stage alone, then the answers."""
        yield from self._head()
        yield table_head("a stage alone")
        yield from (
            f"{stage.call.row()}  {written(stage.rate):>11} {stage.unit}/s" for stage in self.stages
        )
        for answer in self.answers:
            yield ""
            yield table_head(
                f"{counted(answer.num_images, 'images')}, {answer.prompt_tokens} positions"
            )
            yield from (figure.row() for figure in answer.figures.values())
        yield ""
        yield from _NOTES
        yield self.memory_method

    def _head(self) -> Iterator[str]:
        bundle, options, settings = self.bundle, self.options, self.settings
        threads = options.num_threads or "one a core"
        engines = {"ort": f"kernels {options.kernels}", "trt": "engines", "kernels": "Triton"}
        engine = engines[options.backend]
        yield f"bundle   {bundle['name']}, {bundle['dtype']}, manifest {bundle['manifest_sha256'][:12]}"
        yield f"machine  {self.machine['processor']}, {self.machine['cores']} cores"
        yield f"runs by  {options.backend}, {engine}, threads: {threads}"
        yield (
            f"repeats  {settings.repeats} after {settings.warmup} of warm-up; "
            f"{settings.new_tokens} new tokens each"
        )
        yield ""
