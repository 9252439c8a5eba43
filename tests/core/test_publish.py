"""A folder appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.core.publish import JOURNAL_FILE, atomic_directory


def publish(folder: Path, text: str, *, overwrite: bool = False, fail: bool = False) -> None:
    with atomic_directory(folder, overwrite=overwrite, marker="mark") as staging:
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


KEY = "0123456789abcdef"


def killed(folder: Path, key: str, text: str) -> Path:
    """Leave what a process that was killed would leave."""
    staging = folder.with_name(f".{folder.name}.{key}.staging")
    staging.mkdir(parents=True)
    (staging / "part").write_text(text)
    return staging


def test_a_killed_call_of_the_same_key_is_gone_on_with(tmp_path: Path) -> None:
    killed(tmp_path / "out", KEY, "half")
    with atomic_directory(
        tmp_path / "out", overwrite=False, marker="mark", resume_key=KEY
    ) as staging:
        assert (staging / "part").read_text() == "half"
        (staging / JOURNAL_FILE).write_text("finished: part")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["part"]


@pytest.mark.parametrize("key", [None, "fedcba98"], ids=["without-key", "other-key"])
def test_what_others_left_is_removed(
    tmp_path: Path, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    left = killed(tmp_path / "out", KEY, "half")
    # of another target, whose name only begins like this one's
    others = killed(tmp_path / "out.old", KEY, "half")
    with atomic_directory(
        tmp_path / "out", overwrite=False, marker="mark", resume_key=key
    ) as staging:
        assert not any(staging.iterdir())
    assert f"removed {left}" in caplog.text
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", others])


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError, ValueError], ids=lambda e: e.__name__
)
@pytest.mark.parametrize("has_journal", [False, True])
def test_finished_work_outlives_an_interrupt_and_a_full_disk(
    tmp_path: Path, error: type[BaseException], has_journal: bool
) -> None:
    def work() -> None:
        with atomic_directory(
            tmp_path / "out", overwrite=False, marker="mark", resume_key=KEY
        ) as staging:
            if has_journal:
                (staging / JOURNAL_FILE).touch()
            raise error

    with pytest.raises(InputError if error is OSError else error):
        work()
    kept = has_journal and error is not ValueError
    assert [p.name for p in tmp_path.iterdir()] == ([f".out.{KEY}.staging"] if kept else [])


@pytest.mark.parametrize("key", [KEY, "fedcba98"], ids=["same-key", "other-key"])
def test_work_of_a_living_process_is_left_alone(tmp_path: Path, key: str) -> None:
    def second() -> None:
        with atomic_directory(tmp_path / "out", overwrite=False, marker="mark", resume_key=key):
            raise ValueError("the second is at work")

    message = "is being written by another process" if key == KEY else "the second is at work"
    with atomic_directory(
        tmp_path / "out", overwrite=False, marker="mark", resume_key=KEY
    ) as staging:
        (staging / "mark").write_text("first")
        with pytest.raises((InputError, ValueError), match=message):
            second()
        assert (staging / "mark").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_target_that_was_cut_off_between_its_names_comes_back(
    tmp_path: Path, is_replaced: bool
) -> None:
    publish(tmp_path / "out", "a")
    (tmp_path / "out").rename(tmp_path / f".out.{KEY}.old")
    if is_replaced:
        publish(tmp_path / "elsewhere", "b")
        (tmp_path / "elsewhere").rename(tmp_path / "out")
    with pytest.raises(InputError, match="absent or empty"):
        publish(tmp_path / "out", "c")
    assert (tmp_path / "out/mark").read_text() == ("b" if is_replaced else "a")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
