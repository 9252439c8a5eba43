"""Output of every verb that asks a question."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longllava_trt.runtime.backends.base import BackendName
    from longllava_trt.runtime.text.detokenizer import GenerationOutput
    from longllava_trt.runtime.written_prompt import WrittenPrompt

__all__ = ["add_show_prompt", "answer_document", "print_prompt", "print_skipped", "prompt_document"]


def add_show_prompt(parser: argparse.ArgumentParser) -> None:
    """Add that the prompt is shown."""
    parser.add_argument(
        "--show-prompt",
        action="store_true",
        help="print the exact prompt and the number of its ids to stderr before it runs, <image> where an image goes; "
        "with --json it is a field (default: not shown)",
    )


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


def prompt_document(prompt: WrittenPrompt | None) -> dict[str, Any]:
    """Return a prompt for machines, if it is to be shown."""
    return {} if prompt is None else {"prompt": prompt._asdict()}


def print_prompt(prompt: WrittenPrompt) -> None:
    """Print a prompt to stderr."""
    images = "1 image" if prompt.num_images == 1 else f"{prompt.num_images} images"
    print(f"prompt of {prompt.num_ids} ids and {images}:\n{prompt.text}", file=sys.stderr)


def print_skipped(skipped: Sequence[str]) -> None:
    """Say on stderr which images were left out, and why."""
    for note in skipped:
        print(f"skipped: {note}", file=sys.stderr)
