"""The table names units, the document is complete, and the picture is a picture of the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longllava_trt.bench import chart
from longllava_trt.bench.chart import draw_chart, panels, save_chart, ticks
from longllava_trt.bench.report import BenchReport
from longllava_trt.core.errors import InputError

MakeReport = Callable[..., BenchReport]
SAMPLES = {0: (0.2, 0.1, 0.3), 10: (3.0, 5.0, 4.0), 40: (9.0, 9.5, 8.0)}
"""Seconds to the first token by number of images: medians 0.2, 4 and 9."""
COLOUR = chart._COLOURS[4]
"""Of the line `first token`, the fifth."""
_WHITE = (255, 255, 255)


def test_the_table_says_what_and_in_which_unit(make_report: MakeReport) -> None:
    lines = [*make_report(SAMPLES).lines()]
    words = [line.split() for line in lines]
    assert "vision, 4 images 20.0 10.0 30.0 ms 200 images/s".split() in words
    assert "10 images, 800 positions median min max".split() in words
    assert "first token 4.00 3.00 5.00 s".split() in words
    assert "decode 200 200 200 tokens/s".split() in words
    assert "decode loop's own time 100 100 100 µs/token".split() in words
    assert "peak resident memory 300 300 300 MB".split() in words
    assert sum(line.endswith(" tokens/s") for line in lines) == 2 * len(SAMPLES)
    assert max(map(len, lines)) <= 100


def test_what_was_not_measured_has_no_row(make_report: MakeReport) -> None:
    report = make_report(SAMPLES, runtime_s=None)
    assert not [line for line in report.lines() if "µs/token" in line]


def test_the_document_is_complete(make_report: MakeReport) -> None:
    document: dict[str, Any] = json.loads(json.dumps(make_report(SAMPLES).to_json()))
    assert document.keys() == {
        *("machine", "versions", "bundle", "settings", "memory_method", "stages", "answers")
    }
    assert document["settings"]["repeats"] == 5
    assert document["settings"]["run"]["kernels"] == "fast"
    assert document["stages"][0]["call"]["samples"] == [10.0, 30.0, 20.0]
    assert document["stages"][0]["per_s"] == 200.0
    assert [a["num_images"] for a in document["answers"]] == [*SAMPLES]
    for answer, samples in zip(document["answers"], SAMPLES.values(), strict=True):
        assert answer["figures"]["first_token_s"]["samples"] == [*samples]
        assert all(len(f["samples"]) == 3 for f in answer["figures"].values())


def test_the_picture_opens(make_report: MakeReport, tmp_path: Path) -> None:
    save_chart(make_report(SAMPLES), tmp_path / "bench.png")
    assert [p.name for p in tmp_path.iterdir()] == ["bench.png"]
    with Image.open(tmp_path / "bench.png") as image:
        assert image.format == "PNG"
        assert image.size == draw_chart(make_report(SAMPLES)).size
        image.verify()


def test_nothing_is_cut_off_at_the_edges(make_report: MakeReport) -> None:
    image = draw_chart(make_report(SAMPLES))
    edges = [(0, 0, 8, image.height), (image.width - 8, 0, image.width, image.height)]
    edges += [(0, 0, image.width, 8), (0, image.height - 8, image.width, image.height)]
    for box in edges:
        assert image.crop(box).getcolors() == [((box[2] - box[0]) * (box[3] - box[1]), _WHITE)]


def pixel(image: Image.Image, panel: chart.Panel, x: float, y: float) -> object:
    across, up = panel.at(x, y)
    return image.getpixel((round(across), round(up)))


def test_the_curve_is_where_the_data_say(make_report: MakeReport) -> None:
    report = make_report(SAMPLES)
    image, panel = draw_chart(report), panels(report.answers)[0]
    for x, y in ((0, 0.2), (10, 4.0), (40, 9.0)):
        assert pixel(image, panel, x, y) == COLOUR
    # half-way between two medians, and on the whisker from smallest to largest
    assert pixel(image, panel, 25, 6.5) == COLOUR
    assert pixel(image, panel, 10, 4.9) == COLOUR
    assert pixel(image, panel, 10, 5.6) != COLOUR
    assert pixel(image, panel, 25, 8.0) != COLOUR


def test_other_data_make_another_curve(make_report: MakeReport) -> None:
    report = make_report(SAMPLES | {10: (7.0, 7.0, 7.0)})
    image, panel = draw_chart(report), panels(report.answers)[0]
    assert pixel(image, panel, 10, 7.0) == COLOUR
    assert pixel(image, panel, 10, 4.0) != COLOUR


def test_panels_have_axes_from_zero_that_hold_all_points(make_report: MakeReport) -> None:
    drawn = panels(make_report(SAMPLES).answers)
    assert [panel.unit for panel in drawn] == ["s", "ms", "MB"]
    for panel in drawn:
        assert panel.x_ticks[0] == panel.y_ticks[0] == 0
        for line in panel.lines:
            assert [x for x, _ in line.points] == [*SAMPLES]
            assert all(figure.high <= panel.y_ticks[-1] for _, figure in line.points)
    assert {line.name for line in drawn[0].lines} >= {"vision", "projector", "first token"}
    left, bottom = drawn[0].at(0, 0)
    right, top = drawn[0].at(drawn[0].x_ticks[-1], drawn[0].y_ticks[-1])
    assert left < right
    assert top < bottom < drawn[1].top


@pytest.mark.parametrize("counts", [(0,), (1,), (1000,)])
def test_a_single_number_of_images_is_drawn(
    counts: tuple[int, ...], make_report: MakeReport
) -> None:
    report = make_report(dict.fromkeys(counts, (1.0, 1.0, 1.0)))
    image, panel = draw_chart(report), panels(report.answers)[0]
    assert pixel(image, panel, counts[0], 1.0) == COLOUR


@pytest.mark.parametrize("most", [3e-5, 0.31, 1, 2, 7, 60, 61, 691.4, 1000, 7e9])
def test_ticks_are_round_and_reach_far_enough(most: float) -> None:
    marks = ticks(most)
    step = marks[1]
    assert marks == pytest.approx([step * i for i in range(len(marks))])
    assert 3 <= len(marks) <= 8
    assert marks[-2] < most <= marks[-1] * (1 + 1e-12)
    assert f"{step:e}"[0] in "125"


@pytest.mark.parametrize(("most", "marks"), [(0, (0, 1)), (1, (0, 1)), (3, (0, 1, 2, 3))])
def test_images_are_counted_in_whole_numbers(most: int, marks: tuple[float, ...]) -> None:
    assert ticks(most, whole=True) == marks


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError("disk is full"), InputError)],
    ids=["interrupt", "full-disk"],
)
def test_a_picture_is_written_whole_or_not_at_all(
    failure: BaseException,
    expected: type[BaseException],
    make_report: MakeReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half(_image: Image.Image, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise failure

    (tmp_path / "bench.png").write_bytes(b"of yesterday")
    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(expected):
        save_chart(make_report(SAMPLES), tmp_path / "bench.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"of yesterday"]
