"""The table names units, the document is complete, and the picture is a picture of the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Drawing
from PIL import Image, ImageChops

from longllava_trt.bench import chart
from longllava_trt.bench.chart import Line, check_target, draw_chart, panels, save_chart
from longllava_trt.bench.figure import Figure
from longllava_trt.bench.report import BenchReport
from longllava_trt.core.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MakeReport = Callable[..., BenchReport]
SAMPLES = {0: (0.2, 0.1, 0.3), 10: (3.0, 5.0, 4.0), 40: (9.0, 9.5, 8.0)}
"""Seconds to the first token by number of images: medians 0.2, 4 and 9."""


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
        assert min(image.size) > 1000
        image.verify()


def test_nothing_is_cut_off_at_the_edges(make_report: MakeReport, tmp_path: Path) -> None:
    save_chart(make_report(SAMPLES), tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        shown = image.convert("RGB")
    ink = ImageChops.difference(shown, Image.new("RGB", shown.size, "white")).getbbox()
    assert ink is not None
    left, top, right, bottom = ink
    assert min(left, top, shown.width - right, shown.height - bottom) >= 2


def curve(axes: Axes, label: str) -> ErrorbarContainer:
    (found,) = (c for c in axes.containers if c.get_label() == label)
    assert isinstance(found, ErrorbarContainer)
    return found


def test_curve_and_whiskers_are_where_the_data_say(make_report: MakeReport) -> None:
    line, _, (whiskers,) = curve(draw_chart(make_report(SAMPLES)).axes[0], "first token").lines
    assert line is not None
    assert np.asarray(line.get_xydata()).tolist() == [[0, 0.2], [10, 4], [40, 9]]
    ends = [np.asarray(path.vertices)[:, 1].tolist() for path in whiskers.get_paths()]
    assert ends == [pytest.approx(e) for e in ([0.1, 0.3], [3, 5], [8, 9.5])]


def test_axes_are_logarithmic_and_name_the_numbers_of_images(make_report: MakeReport) -> None:
    first, *others = draw_chart(make_report(SAMPLES)).axes
    assert (first.get_yscale(), first.get_ylim()) == ("log", (0.01, 10))
    assert {axes.get_ylim()[0] for axes in others} == {0}
    for axes in (first, *others):
        assert axes.get_xscale() == "symlog"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "40"]
        assert axes.get_xlabel() == "images"
        assert axes.get_legend() is not None


def test_panels_hold_every_point(make_report: MakeReport) -> None:
    drawn = panels(make_report(SAMPLES).answers)
    assert [panel.unit for panel in drawn] == ["s", "ms", "MB"]
    for panel in drawn:
        for line in panel.lines:
            assert [x for x, _ in line.points] == [*SAMPLES]
    # a sum over threads may be more than the first token took: it is no part of it
    assert [line.name for line in drawn[0].lines] == [
        *("first token", "decoder, prefill", "vision", "projector")
    ]


def test_a_stage_that_did_not_run_has_no_point(make_report: MakeReport) -> None:
    idle = Figure("vision", "s", (0.0, 0.0))
    busy = Figure("vision", "s", (2.0, 3.0))
    assert Line("vision", ((0, idle), (10, busy))).drawable == ((10, busy),)


@pytest.mark.parametrize("counts", [(0,), (1,), (1000,)])
def test_a_single_number_of_images_is_drawn(
    counts: tuple[int, ...], make_report: MakeReport, tmp_path: Path
) -> None:
    report = make_report(dict.fromkeys(counts, (1.0, 1.0, 1.0)))
    save_chart(report, tmp_path / "bench.png")
    (line, *_) = curve(draw_chart(report).axes[0], "first token").lines
    assert line is not None
    assert np.asarray(line.get_xdata()).tolist() == [*counts]


def test_a_missing_matplotlib_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_target(tmp_path / "bench.png")
    monkeypatch.setattr(chart, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"longllava-trt\[plot\]"):
        check_target(tmp_path / "bench.png")


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
    def half(_drawing: Drawing, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise failure

    (tmp_path / "bench.png").write_bytes(b"of yesterday")
    monkeypatch.setattr(Drawing, "savefig", half)
    with pytest.raises(expected):
        save_chart(make_report(SAMPLES), tmp_path / "bench.png")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"of yesterday"]
