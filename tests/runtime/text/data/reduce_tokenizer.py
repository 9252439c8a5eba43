"""Cut the full Jamba tokenizer down to what a few strings need, ids and merges unchanged.

A byte-pair merge joins two neighbours of the text, so its result is a substring of the text. Keeping
every piece that is a substring of a kept string, and every merge whose result is kept, therefore
leaves the encoding of the kept strings, and of any part of them, exactly as it was.

Run it again with the full file to get the committed one, bit for bit:

    python tests/runtime/text/data/reduce_tokenizer.py FULL/tokenizer.json OUT/tokenizer.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

__all__ = ["EXTRA_STRINGS", "kept_strings", "reduce_tokenizer"]

EXTRA_STRINGS = (
    "A cat, a dog and 2 birds.\nNaïve café: 日本語, привет, 🪿!",
    "Compare the first image with the second one. What is the difference?",
)
"""Beside the gold prompts: text of several scripts, part of it only as bytes."""

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def kept_strings() -> list[str]:
    """Return every string whose encoding must survive."""
    gold = json.loads(Path(__file__).with_name("gold_prompts.json").read_text(encoding="utf-8"))
    return [vector["prompt"] for vector in gold] + list(EXTRA_STRINGS)


def reduce_tokenizer(full: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer with the pieces and merges that the kept strings can reach."""
    model = full["model"]
    texts = [text.replace(" ", "\u2581") for text in kept_strings()]
    special = {token["content"] for token in full["added_tokens"]}
    vocab = {
        piece: piece_id
        for piece, piece_id in model["vocab"].items()
        if piece in special or _BYTE_PIECE.fullmatch(piece) or any(piece in text for text in texts)
    }
    merges = [
        [left, right]
        for left, right in model["merges"]
        if left in vocab and right in vocab and left + right in vocab
    ]
    return {**full, "model": {**model, "vocab": vocab, "merges": merges}}


def main() -> None:
    """Read the full tokenizer.json and write the reduced one."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("full", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    reduced = reduce_tokenizer(json.loads(args.full.read_text(encoding="utf-8")))
    text = json.dumps(reduced, ensure_ascii=False, separators=(",", ":"))
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
