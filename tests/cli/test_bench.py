"""`longllava-trt bench`: one document or one table, a picture, and refusals before any work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longllava_trt.cli import build_parser
from longllava_trt.runtime.model import LongLLaVA, RunOptions

Cli = Callable[..., Any]
QUICK = ("--images", "2,0", "--repeats", 2, "--warmup", 1, "--new-tokens", 3, "--threads", 1)
FIGURES = {
    *("first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s"),
    *("decode_overhead_us_per_token", "peak_resident_mb"),
}
BY_IMAGE = {
    *("decode_image_ms_per_image", "vision_ms_per_image", "projector_ms_per_image"),
    "first_token_ms_per_image",
}


def test_json_holds_every_figure_with_its_samples(
    tiny_bundle: Path, tmp_path: Path, cli: Cli
) -> None:
    plot = tmp_path / "bench.png"
    result = cli("bench", tiny_bundle, *QUICK, "--chunk", 40, "--plot", plot, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["machine"]["cores"] >= 1
    assert document["versions"].keys() >= {"longllava-trt", "python", "onnxruntime", "numpy"}
    assert len(document["bundle"]["manifest_sha256"]) == 64
    assert document["settings"]["image_counts"] == [2, 0]
    assert document["settings"]["run"]["chunk_size"] == 40
    assert document["plot"] == str(plot)
    none, two = document["answers"]
    assert (none["num_images"], two["num_images"]) == (0, 2)
    assert none["figures"].keys() == FIGURES
    assert two["figures"].keys() == FIGURES | BY_IMAGE
    figures = [*none["figures"].values(), *two["figures"].values()]
    for figure in [*figures, *(stage["call"] for stage in document["stages"])]:
        assert len(figure["samples"]) == 2
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
        assert figure["unit"]
    assert {s["stage"] for s in document["stages"]} == {"vision", "projector", "embed", "decoder"}
    with Image.open(plot) as image:
        image.verify()


def test_the_table_goes_to_stdout_and_progress_to_stderr(
    tiny_bundle: Path, pictures: Path, cli: Cli
) -> None:
    picture = pictures / "frame10.png"
    result = cli("bench", tiny_bundle, *QUICK, "--image", picture, "--kernels", "bodies")
    assert result.code == 0, result.err
    assert "kernels onnx" in result.out
    for title in ("a stage alone", "0 images, ", "2 images, "):
        assert any(line.startswith(title) for line in result.out.splitlines())
    for unit in ("tokens/s", "ms/image", "µs/token", "MB", "images/s"):
        assert unit in result.out
    assert "bench 2 images: 3 runs" in result.err


NOT_STARTED: dict[str, tuple[list[Any], str]] = {
    "no-bundle": (["NOWHERE"], "not a bundle"),
    "plot-in-no-folder": (["BUNDLE", "--plot", "NOWHERE/a.png"], "in a folder that exists"),
    "plot-is-a-folder": (["BUNDLE", "--plot", "HERE"], "must be a file"),
    "no-images": (["BUNDLE", "--images", ""], "--images"),
    "negative-images": (["BUNDLE", "--images", "0,-3"], "--images"),
    "images-as-text": (["BUNDLE", "--images", "1,many"], "--images"),
    "more-images-than-memory": (["BUNDLE", "--images", "1000000000000"], "show fewer images"),
    "more-images-than-fit": (["BUNDLE", "--images", "0,1200"], "of the 1200 images fit"),
    "short-cache": (["BUNDLE", "--images", "0", "--max-context", "20"], "the cache has 20"),
    "long-answer": (["BUNDLE", "--new-tokens", "999999"], "answer up to 999999"),
    "one-token": (["BUNDLE", "--new-tokens", "1"], "new tokens must be at least 2"),
    "no-repeats": (["BUNDLE", "--repeats", "0"], "--repeats"),
    "negative-warmup": (["BUNDLE", "--warmup", "-1"], "--warmup"),
    "no-threads": (["BUNDLE", "--threads", "0"], "--threads"),
    "empty-prompt": (["BUNDLE", "-p", " "], "the text is empty"),
    "placeholder": (["BUNDLE", "-p", "<image>?"], "must not hold <image>"),
    "no-such-image": (["BUNDLE", "--image", "NOWHERE"], "cannot be opened"),
}


@pytest.mark.parametrize(("words", "expected"), NOT_STARTED.values(), ids=NOT_STARTED)
def test_what_cannot_work_is_refused_before_any_work(
    words: list[Any],
    expected: str,
    tiny_bundle: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a measurement began")

    monkeypatch.setattr("longllava_trt.bench.measure_answers", started)
    places = {
        "BUNDLE": tiny_bundle,
        "HERE": tmp_path,
        "NOWHERE": tmp_path / "no",
        "NOWHERE/a.png": tmp_path / "no" / "a.png",
    }
    result = cli("bench", *(places.get(word, word) for word in words))
    assert result.code == 2
    assert expected in result.message
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        assert list((tmp_path / "scratch").iterdir())
        raise KeyboardInterrupt

    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(LongLLaVA, "generate", interrupted)
    result = cli("bench", tiny_bundle, *QUICK, "--json", "--plot", tmp_path / "bench.png")
    assert result.code == 130
    assert result.out == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


def test_defaults_are_those_of_the_library() -> None:
    from longllava_trt.bench import BenchSettings

    args, settings = build_parser().parse_args(["bench", "bundle"]), BenchSettings()
    assert args.images == settings.image_counts
    assert args.prompt == settings.prompt
    assert args.new_tokens == settings.new_tokens
    assert args.warmup == settings.warmup
    assert args.repeats == settings.repeats
    assert tuple(args.image) == settings.images
    assert args.kernels == RunOptions().kernels
