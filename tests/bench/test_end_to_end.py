"""Answers' figures follow from what was timed; real ones are what they were asked to be."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from longllava_trt.bench.end_to_end import AnswerFigures, AnswerRun, measure_answers
from longllava_trt.bench.memory import memory_method, peak_resident_bytes, reset_peak
from longllava_trt.bench.pictures import PICTURE_SIZE, draw_pictures, in_turns
from longllava_trt.bench.settings import BenchSettings
from longllava_trt.bench.stages import measure_stages
from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import ProgressEvent
from longllava_trt.runtime.model import LongLLaVA, RunOptions

if TYPE_CHECKING:
    import numpy as np

MakeRun = Callable[..., AnswerRun]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(
        tiny_bundle, RunOptions(num_threads=1, chunk_size=33, vision_batch=3)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("first_token_s", 1.0),
        ("prefill_tokens_per_s", 800 / 0.5),
        ("decode_tokens_per_s", 20 / 0.1),
        ("decode_overhead_us_per_token", 100.0),
        ("decode_image_ms_per_image", 80.0),
        ("vision_ms_per_image", 40.0),
        ("projector_ms_per_image", 10.0),
        ("first_token_ms_per_image", 200.0),
        ("peak_resident_mb", 300.0),
    ],
)
def test_figures_follow_from_times(name: str, value: float, make_run: MakeRun) -> None:
    figures = AnswerFigures((make_run(),)).figures
    assert figures[name].median == pytest.approx(value)
    assert len(figures) == 9


def test_without_images_nothing_is_by_image(make_run: MakeRun) -> None:
    figures = AnswerFigures((make_run(num_images=0),)).figures
    assert not [name for name in figures if name.endswith("per_image")]
    assert len(figures) == 5


def test_what_was_not_watched_has_no_figure(make_run: MakeRun) -> None:
    assert "decode_overhead_us_per_token" not in (
        AnswerFigures((make_run(runtime_s=None),)).figures
    )


def test_answers_are_what_was_asked_for(model: LongLLaVA, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    settings = BenchSettings(image_counts=(3, 0, 3), new_tokens=5, warmup=1, repeats=2)
    pictures = draw_pictures(tmp_path, 2)
    none, three = measure_answers(model, settings, pictures, watch=None, progress=events.append)
    assert (none.num_images, three.num_images) == (0, 3)
    assert three.prompt_tokens >= none.prompt_tokens + 3 * model.runner.cutter.patches.num_rows
    for answer in (none, three):
        assert len(answer.runs) == 2
        assert [run.steps for run in answer.runs] == [4, 4]
        assert all(min(f.samples) > 0 for f in answer.figures.values())
    for run in three.runs:
        parts = sum(run.timings[stage] for stage in ("vision", "projector", "embed", "prefill"))
        assert parts < run.first_token_s
    assert [e.done for e in events if e.task == "bench 3 images"] == [0, 1, 2, 3]


def test_stages_are_timed_by_image_and_by_batch(model: LongLLaVA) -> None:
    events: list[ProgressEvent] = []
    found = measure_stages(model, warmup=1, repeats=3, progress=events.append)
    assert [(f.stage, f.amount, f.unit, f.context) for f in found] == [
        ("vision", 1, "images", 0),
        ("projector", 1, "images", 0),
        ("vision", 3, "images", 0),
        ("projector", 3, "images", 0),
        ("embed", 1, "tokens", 0),
        ("embed", 33, "tokens", 0),
        ("decoder", 33, "tokens", 0),
        ("decoder", 1, "tokens", 33),
    ]
    for stage in found:
        assert len(stage.call.samples) == 3
        assert stage.rate == pytest.approx(1e3 * stage.amount / stage.call.median)
    assert events[-1].done == events[-1].total == len(found)


def test_each_repeat_of_the_decoder_begins_where_the_first_did(
    model: LongLLaVA, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, starts = model.runner.decoder.step, list[tuple[int, int]]()

    def noted(inputs_embeds: np.ndarray, state: object) -> np.ndarray:
        starts.append((inputs_embeds.shape[1], state.past_len))  # type: ignore[attr-defined]
        return step(inputs_embeds, state)

    monkeypatch.setattr(model.runner.decoder, "step", noted)
    measure_stages(model, warmup=1, repeats=2, progress=None)
    assert starts == [(33, 0)] * 3 + [(1, 33)] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_counts": ()}, "image counts must be at least 0"),
        ({"image_counts": (3, -1)}, "image counts must be at least 0, got -1"),
        ({"new_tokens": 1}, "new tokens must be at least 2, got 1"),
        ({"warmup": -1}, "warm-up must be at least 0"),
        ({"repeats": 0, "new_tokens": 0}, "new tokens.*; repeats must be at least 1"),
        ({"prompt": "<image>?"}, "must not hold <image>"),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(value),
)
def test_settings_that_make_no_sense(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchSettings(**changes)  # type: ignore[arg-type]


def test_pictures_are_seeded_and_differ(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    few, more = draw_pictures(tmp_path / "a", 2), draw_pictures(tmp_path / "b", 3)
    assert [p.read_bytes() for p in few] == [p.read_bytes() for p in more[:2]]
    assert len({p.read_bytes() for p in more}) == 3
    assert {p.suffix for p in more} == {".jpg", ".png"}
    for path in more:
        with Image.open(path) as image:
            assert image.size == PICTURE_SIZE
    assert in_turns(few, 5) == [*few, *few, few[0]]
    assert in_turns((), 0) == []


@pytest.mark.skipif(not reset_peak(), reason="this system cannot set the peak back: unproven here")
def test_the_peak_is_that_since_it_was_set_back() -> None:
    size = 64_000_000
    reset_peak()
    before = peak_resident_bytes()
    # mapped by hand: an allocator may keep what is given back to it
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1
        assert peak_resident_bytes() >= before + 0.9 * size
    assert peak_resident_bytes() >= before + 0.9 * size
    reset_peak()
    assert peak_resident_bytes() < before + 0.5 * size
    assert memory_method().startswith("VmHWM")
