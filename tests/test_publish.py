"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.errors import InputError
from longllava_trt.publish import published


def publish(folder: Path, text: str, *, overwrite: bool = False, fail: bool = False) -> None:
    with published(folder, overwrite=overwrite, marker="mark") as staging:
        (staging / "mark").write_text(text)
        assert not folder.exists() or overwrite or not any(folder.iterdir())
        if fail:
            raise KeyboardInterrupt


def test_success_leaves_the_folder_and_nothing_else(tmp_path: Path) -> None:
    publish(tmp_path / "out", "a")
    assert (tmp_path / "out/mark").read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_failure_leaves_what_was(tmp_path: Path, exists: bool) -> None:
    if exists:
        publish(tmp_path / "out", "a")
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "out", "b", overwrite=True, fail=True)
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if exists else [])
    assert not exists or (tmp_path / "out/mark").read_text() == "a"


def test_a_taken_folder_needs_overwrite(tmp_path: Path) -> None:
    publish(tmp_path / "out", "a")
    with pytest.raises(InputError, match="absent or empty"):
        publish(tmp_path / "out", "b")
    publish(tmp_path / "out", "b", overwrite=True)
    assert (tmp_path / "out/mark").read_text() == "b"


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").touch()
    with pytest.raises(InputError, match="has no mark"):
        publish(tmp_path / "out", "b", overwrite=True)
    assert (tmp_path / "out/thesis.tex").exists()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        publish(tmp_path / "file/out", "a")
