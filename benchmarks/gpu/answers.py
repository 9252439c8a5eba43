"""Answers of the small trained checkpoint on our own kernels: does it find the marked picture on a real GPU too?

What ONNX Runtime answered on a CPU is made beforehand by `prepare` and taken along, as a file of JSON: text, ids and scores
must be the same on the GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.compare import attempt
from benchmarks.gpu.context import BenchContext

if TYPE_CHECKING:
    from longllava_trt.runtime.model import LongLLaVA

__all__ = ["EXPECTED_FILE", "answers", "ask_all", "write_expected"]

EXPECTED_FILE = "expected-answers.json"
"""Beside the bundle."""

_COUNTS, _DEPTHS = (10, 100, 1000), 4
_DRY_COUNTS, _DRY_DEPTHS = (3,), 2
_MAX_CONTEXT, _DRY_CONTEXT = 80_000, 1_000
_SCORES = 64
"""Scores of the first token that are written down, from the front of the vocabulary."""


def answers(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a number of images: answers that are right, and that are those of ONNX Runtime."""
    bundle = context.bundle
    if bundle is None or not (bundle.parent / EXPECTED_FILE).is_file():
        yield {"case": f"not run: name a bundle beside {EXPECTED_FILE} with --bundle"}
        return
    expected = json.loads((bundle.parent / EXPECTED_FILE).read_text(encoding="utf-8"))
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    options = RunOptions(backend="kernels", max_context=expected["max_context"])
    model = LongLLaVA.from_bundle(bundle, options)
    counts, depths = (_DRY_COUNTS, _DRY_DEPTHS) if context.is_dry else (_COUNTS, _DEPTHS)
    for count in counts:
        yield attempt(
            f"{count} images",
            lambda n=count: _compare(ask_all(model, n, depths), expected["answers"][str(n)]),  # type: ignore[misc]
        )


def write_expected(bundle: Path, *, is_dry: bool = False) -> None:
    """Ask a bundle the same in ONNX Runtime, and write down its answers beside it."""
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    options = RunOptions(backend="ort", max_context=_DRY_CONTEXT if is_dry else _MAX_CONTEXT)
    model = LongLLaVA.from_bundle(bundle, options)
    counts = [(n, _DRY_DEPTHS) for n in _DRY_COUNTS]
    counts += [] if is_dry else [(n, _DEPTHS) for n in _COUNTS]
    asked = {str(count): ask_all(model, count, depths) for count, depths in counts}
    document = {"max_context": options.max_context, "answers": asked}
    (bundle.parent / EXPECTED_FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")


def ask_all(model: LongLLaVA, count: int, depths: int) -> list[dict[str, Any]]:
    """Ask about the marked picture at evenly spread depths among ``count``."""
    from examples.needle.task import QUESTIONS, Haystack, draw_hay_pictures, parse_answer

    hay, question = draw_hay_pictures(0, count), QUESTIONS["mark"]
    found = []
    for depth in range(depths):
        stack = Haystack.draw(0, hay=hay, depth=depth, num_depths=depths)
        begin = time.perf_counter()
        session = model.session()
        session.ingest(stack.pictures)
        answer = session.ask(question, max_new_tokens=24)
        seconds = time.perf_counter() - begin
        scores = session.score(question, answer.token_ids[:1])[0, :_SCORES]
        found.append(
            {
                "text": answer.text,
                "ids": list(answer.token_ids),
                "is_right": parse_answer(answer.text) == stack.mark,
                "scores": [float(s) for s in scores],
                "seconds": seconds,
            }
        )
    return found


def _compare(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = list(zip(found, expected, strict=True))
    same = sum(a["ids"] == b["ids"] for a, b in pairs)
    scores, wanted = (np.array([p[i]["scores"] for p in pairs]) for i in (0, 1))
    error = float(np.abs(scores - wanted).max() / np.abs(wanted).max())
    return {
        "ok": same == len(pairs) and error <= 1e-3,
        "right": sum(a["is_right"] for a in found),
        "same_ids": same,
        "of": len(pairs),
        "error": error,
        "seconds": min(a["seconds"] for a in found),
    }
