"""Results of the original LLaVA code on four tiny checkpoints; `data/README.md` says how it was made."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CASES", "CHECKPOINTS", "DATA", "GoldCase", "gold_case", "gold_prompts", "picture"]

DATA = Path(__file__).with_name("data")
_OF_ALL = ("one", "two", "text", "turns", "small")
_CASES = {
    "llava-1": _OF_ALL,
    "llava-1.5": _OF_ALL,
    "llava-1.5-hd": _OF_ALL,
    "llava-1.6": (*_OF_ALL, "mistral", "chatml", "llama_2"),
}
CHECKPOINTS = tuple(_CASES)
CASES = [(name, case) for name, cases in _CASES.items() for case in cases]
_PICTURES = {"one": "A", "two": "BC", "text": "", "turns": "D", "small": "S"}
_FILES = {
    "A": ("astronaut.png", (20, 3, 351, 500)),
    "B": ("coffee.png", None),
    "C": ("rocket.jpg", (200, 0, 301, 427)),
    "D": ("chelsea.png", (0, 0, 300, 200)),
    "S": ("chelsea.png", (20, 10, 320, 130)),
}


@dataclass(frozen=True)
class GoldCase:
    """One prompt and everything the original made of it."""

    checkpoint: Path
    pictures: tuple[Image.Image, ...]
    prompt: str
    ids: list[int]
    """-200 marks an image."""
    positions: int
    tiles: list[int]
    """Views of each picture."""
    pixels_sample: NDArray[np.float32] | None
    """Every 37th row and 41st column of every view."""
    embeds_sum: NDArray[np.float64]
    """Sum over the width of each row that the decoder gets."""
    at: list[int]
    """Positions of the logits."""
    logits: NDArray[np.float32]
    tokens: list[int]
    """Sixteen greedy ones."""


def picture(name: str) -> Image.Image:
    """Return one of the pictures A, B, C, D, S."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed: the original's numbers stay unproven")
    file, box = _FILES[name]
    image = Image.open(Path(spec.origin).parent / "data" / file).convert("RGB")
    if name == "B":
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=92)
        return Image.open(packed).convert("RGB")
    return image.crop(box)


@cache
def gold_prompts(checkpoint: str) -> dict[str, Any]:
    """Return the prompts, as text, and the ids of all cases of a checkpoint, as lists."""
    with np.load(DATA / checkpoint / "gold.npz") as stored:
        return {
            name: stored[name].item() if name.endswith(".prompt") else stored[name].tolist()
            for name in stored.files
            if name.endswith((".prompt", ".ids"))
        }


@cache
def gold_case(checkpoint: str, case: str) -> GoldCase:
    """Read a case."""
    with np.load(DATA / checkpoint / "gold.npz") as stored:
        found: dict[str, Any] = {
            name.removeprefix(f"{case}."): stored[name]
            for name in stored.files
            if name.startswith(f"{case}.")
        }
    return GoldCase(
        checkpoint=DATA / checkpoint,
        pictures=tuple(picture(name) for name in _PICTURES.get(case, "A")),
        prompt=str(found["prompt"]),
        ids=found["ids"].tolist(),
        positions=int(found["positions"]),
        tiles=found["tiles"].tolist() if "tiles" in found else [],
        pixels_sample=found.get("pixels_sample"),
        embeds_sum=found["embeds_sum"],
        at=found["at"].tolist(),
        logits=found["logits"],
        tokens=found["tokens"].tolist(),
    )
