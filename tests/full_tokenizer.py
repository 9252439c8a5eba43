"""Folder of Jamba's whole tokenizer, which is too large for the repository: tests that need it are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FULL_TOKENIZER"]

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data" / "jamba-tokenizer"
FULL_TOKENIZER = Path(os.environ.get("LONGLLAVA_TOKENIZER") or _BESIDE_THE_CHECKOUT)
