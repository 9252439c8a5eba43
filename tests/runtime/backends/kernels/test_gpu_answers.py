"""The GPU benchmarks' step `answers`, on a bundle that nobody trained: our kernels' plain versions answer as ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu.answers import EXPECTED_FILE, answers, write_expected
from benchmarks.gpu.context import BenchContext

pytestmark = pytest.mark.usefixtures("plain_versions")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle beside what ONNX Runtime answered."""
    link = tmp_path_factory.mktemp("answers") / "bundle"
    link.symlink_to(tiny_bundle, target_is_directory=True)
    write_expected(link, is_dry=True)
    return link


def test_answers_and_scores_are_those_of_onnx_runtime(bundle: Path, tmp_path: Path) -> None:
    (row,) = answers(BenchContext(out=tmp_path, is_dry=True, bundle=bundle))
    assert row["case"] == "3 images"
    assert row["ok"], row
    assert row["same_ids"] == row["of"] == 2
    assert row["error"] < 1e-4


def test_another_answer_is_noticed(bundle: Path, tmp_path: Path) -> None:
    document = json.loads((bundle.parent / EXPECTED_FILE).read_text(encoding="utf-8"))
    document["answers"]["3"][1]["ids"][0] += 1
    other = tmp_path / "bundle"
    other.symlink_to(bundle.resolve(), target_is_directory=True)
    (tmp_path / EXPECTED_FILE).write_text(json.dumps(document), encoding="utf-8")
    (row,) = answers(BenchContext(out=tmp_path, is_dry=True, bundle=other))
    assert (row["ok"], row["same_ids"]) == (False, 1)


def test_without_expected_answers_the_step_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    for given in (None, tiny_bundle):
        (row,) = answers(BenchContext(out=tmp_path, bundle=given))
        assert row["case"].startswith("not run: name a bundle")
