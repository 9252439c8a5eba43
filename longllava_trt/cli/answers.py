"""Output of every verb that asks a question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.base import BackendName
    from longllava_trt.runtime.text.detokenizer import GenerationOutput

__all__ = ["answer_document", "print_skipped"]


def answer_document(
    answer: GenerationOutput, *, backend: BackendName, total_s: float
) -> dict[str, Any]:
    """Return an answer for machines."""
    return {
        "backend": backend,
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
