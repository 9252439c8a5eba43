"""Facts stay in their own room: only `models/` knows a family by name, tensor or number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "reference", "plugins_trt", "export", "runtime", "longllava_trt")

FORBIDDEN = {
    "a family's name": re.compile(r"jamba", re.IGNORECASE),
    "an expert's tensor name": re.compile(
        r"moe\.(experts|router)|feed_forward\.(experts|router)|\b(gate|up|down|gate_up)_proj\b"
    ),
    "a number of image tokens, patches or pixels": re.compile(r"\b(144|336|576)\b(?!,)"),
}
NO_IMAGES = ("plugins_trt",)
"""Rooms that know of no image, in which such a number is another thing."""


def sources() -> Iterator[tuple[str, str]]:
    """Yield path and text of every module outside `models/`; links below `longllava_trt/` are not followed twice."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT)
            linked = [parent for parent in name.parents if (ROOT / parent).is_symlink()]
            if not linked:
                yield name.as_posix(), path.read_text(encoding="utf-8")


def knowing(name: str, text: str) -> list[str]:
    """Return what a module says that only a family may."""
    return [
        f"{name}:{number} {what}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in FORBIDDEN.items()
        if pattern.search(line) and not ("number" in what and name.startswith(NO_IMAGES))
    ]


def test_no_room_knows_a_family() -> None:
    found = [line for name, text in sources() for line in knowing(name, text)]
    assert found == []


def test_every_room_is_looked_at() -> None:
    seen = {name.partition("/")[0] for name, _ in sources()}
    assert seen == set(ROOMS)


@pytest.mark.parametrize(
    "line",
    [
        "from longllava_trt.models.llava_jamba.config import read_config",
        '"""Jamba\'s router."""',
        'name = f"model.layers.{i}.moe.experts.0.up"',
        'name = f"layers.{i}.feed_forward.experts."',
        "self.gate_proj = nn.Linear(2, 3)",
        "length = 144 * images",
        "SIDE = 336",
    ],
)
def test_a_planted_line_is_found(line: str) -> None:
    assert len(knowing("export/bundle.py", line)) == 1
    assert knowing("export/bundle.py", "experts = spec.num_image_tokens + 1440") == []
