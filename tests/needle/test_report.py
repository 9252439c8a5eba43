"""The report passes, fails and prints what its trials say; the picture is a picture of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from examples.needle import NeedleReport, Trial
from examples.needle.heat_map import draw_heat_map, save_heat_map
from longllava_trt.core.errors import InputError


def trial(**changes: object) -> Trial:
    usual = Trial(
        seed=0,
        num_images=10,
        depth=0.0,
        position=0,
        expected="red square",
        answer="red square",
        is_right=True,
        prompt_tokens=100,
        seconds=0.1,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def report(*, wrong: int, seed: int = 0, num_images: int = 10) -> NeedleReport:
    return NeedleReport(
        tuple(
            trial(
                seed=seed,
                num_images=num_images,
                depth=d / 9,
                is_right=d >= wrong,
                answer="red square" if d >= wrong else "none",
            )
            for d in range(10)
        )
    )


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False), (10, False)])
def test_nine_of_ten_pass(wrong: int, passed: bool) -> None:
    assert report(wrong=wrong).passed is passed


def test_no_number_of_images_makes_up_for_another() -> None:
    mixed = NeedleReport(report(wrong=0).trials + report(wrong=2, num_images=1000).trials)
    assert not mixed.passed


def test_no_seed_makes_up_for_another() -> None:
    mixed = NeedleReport(report(wrong=0).trials + report(wrong=2, seed=1).trials)
    assert not mixed.passed


def test_nothing_tested_is_not_passed() -> None:
    assert not NeedleReport(()).passed


def test_one_answer_that_differs_from_the_reference_fails() -> None:
    same = trial(is_same=True, reference_answer="red square")
    other = trial(depth=1.0, is_same=False, reference_answer="red circle")
    assert NeedleReport((same,)).passed
    assert not NeedleReport((same, other)).passed
    text = "\n".join(NeedleReport((same, other)).lines())
    assert "'red circle' from the reference" in text
    assert "1 of 2 answers the reference's" in text


def test_the_table_counts_every_cell() -> None:
    lines = NeedleReport(report(wrong=1).trials + report(wrong=0, num_images=300).trials).lines()
    assert lines[0].split() == ["depth", "10", "300", "images"]
    assert lines[1].split() == ["0%", "0/1", "1/1"]
    assert lines[10].split() == ["100%", "1/1", "1/1"]
    assert "expected 'red square', got 'none'" in lines[11]
    assert lines[-1] == "19 of 20 right"


def test_json_holds_every_trial() -> None:
    document = json.loads(json.dumps(report(wrong=1).to_json()))
    assert document["passed"] is True
    assert [row["is_right"] for row in document["trials"]] == [False] + [True] * 9


def test_the_picture_is_a_png_whose_cells_differ(tmp_path: Path) -> None:
    path = tmp_path / "table.png"
    save_heat_map(report(wrong=1), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(path) as image:
        image.verify()
    drawn = draw_heat_map(report(wrong=1)), draw_heat_map(report(wrong=0))
    assert drawn[0].size == drawn[1].size
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.*cannot be written"):
        save_heat_map(report(wrong=0), tmp_path / "missing" / "table.png")
