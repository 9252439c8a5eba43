"""A prompt with images, from pixels to tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from longllava_trt.core.logs import ProgressEvent
from longllava_trt.core.parity import ParityReport
from longllava_trt.models.registry import find_family
from longllava_trt.reference.prompt import build_prompt, wrap_images
from longllava_trt.validation import LEVELS, validate
from tests.validation.conftest import Made, assert_all_passed, make, rows_of


@pytest.mark.parametrize("kernels", ["fast", "onnx"])
def test_64_greedy_tokens_are_identical(report: ParityReport, kernels: str) -> None:
    tokens, logits = rows_of(report, f"generation.{kernels}.")
    assert_all_passed([tokens, logits])
    assert tokens.note == "64 of 64 tokens identical"
    assert logits.top_one is not None
    assert (logits.top_one.rows, logits.top_one.agreeing) == (64, 64)


def test_rows_come_level_by_level(report: ParityReport) -> None:
    assert report.passed
    levels = [row.name.partition(".")[0] for row in report.rows]
    # experts are for quantised bundles
    assert list(dict.fromkeys(levels)) == list(LEVELS[:-1])


@pytest.mark.parametrize("made", ["tiny"], indirect=True)
def test_given_images_are_shown_and_progress_ends(made: Made, tmp_path: Path) -> None:
    image = tmp_path / "odd.png"
    Image.effect_mandelbrot((41, 33), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(image)
    events: list[ProgressEvent] = []
    report = validate(
        *made,
        levels=["generation"],
        kernels=["fast"],
        images=[image] * 3,
        max_new_tokens=5,
        progress=events.append,
    )
    assert_all_passed(list(report.rows))
    assert report.rows[0].note == "5 of 5 tokens identical"
    assert [(event.done, event.total) for event in events] == [(0, 1), (1, 1)]


@pytest.mark.slow
def test_mini_generates_the_same_tokens(tmp_path: Path, traces: Path) -> None:
    report = validate(
        *make(tmp_path, "mini", traces), levels=["stage", "generation"], kernels=["fast"], seed=1
    )
    assert_all_passed(list(report.rows))


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_the_prompt_is_the_original_s(num_images: int) -> None:
    chat = find_family("llava_jamba").chat
    want = build_prompt(wrap_images("What is it?", num_images=num_images))
    assert chat.prompt("What is it?", num_images=num_images) == want
