"""A saved session gives the same answers in another process, and is refused where it does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from longllava_trt.core.errors import InputError
from longllava_trt.runtime import session_file
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.session import Session

ANSWER = (5, 300, 17, 411)
OPTIONS = RunOptions(num_threads=1)

ELSEWHERE = """
import json, sys
from longllava_trt.runtime.model import LongLLaVA, RunOptions

model = LongLLaVA.from_bundle(sys.argv[1], RunOptions(num_threads=1))
session = model.load_session(sys.argv[2])
first = session.ask("What is this?", max_new_tokens=8)
session.rewind(6)
again = session.ask("What is this?", max_new_tokens=8)
print(json.dumps([first.token_ids, again.token_ids, session.num_images]))
"""


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(tiny_bundle, OPTIONS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        Image.effect_noise((20 + i, 30), 80).save(path)
    return paths


@pytest.fixture(scope="module")
def session(model: LongLLaVA, pictures: list[Path]) -> Session:
    """Nine images and a remembered question; tests do not change it."""
    session = model.session(checkpoint_every=4)
    session.ingest(pictures)
    session.ask("What is it?", max_new_tokens=4, remember=True)
    return session


@pytest.fixture
def saved(session: Session, tmp_path: Path) -> Path:
    session.save(tmp_path / "session")
    return tmp_path / "session"


def test_a_loaded_session_is_the_saved_one_to_the_bit(
    model: LongLLaVA, session: Session, saved: Path, tmp_path: Path
) -> None:
    loaded = model.load_session(saved)
    assert (loaded.num_images, loaded.num_positions) == (9, session.num_positions)
    assert loaded.turns == session.turns
    np.testing.assert_array_equal(loaded.score("And?", ANSWER), session.score("And?", ANSWER))
    for to_image in (8, 6, 0):
        fork = session.fork()
        fork.rewind(to_image)
        loaded.rewind(to_image)
        np.testing.assert_array_equal(loaded.score("And?", ANSWER), fork.score("And?", ANSWER))
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(
        model.load_session(saved).score("And?", ANSWER), session.score("And?", ANSWER)
    )


def test_another_process_gives_the_same_answers(
    session: Session, saved: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tiny_bundle), str(saved)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, again, num_images = json.loads(done.stdout)
    assert tuple(first) == session.ask("What is this?", max_new_tokens=8).token_ids
    fork = session.fork()
    fork.rewind(6)
    assert tuple(again) == fork.ask("What is this?", max_new_tokens=8).token_ids
    assert num_images == 6


def test_files_are_plain_safetensors(session: Session, saved: Path) -> None:
    tensors = load_file(saved / "state.safetensors")
    for name, array in session.sequence.state.state_dict(copy=True).items():
        np.testing.assert_array_equal(tensors[name], array)
    checkpoints = load_file(saved / "checkpoints.safetensors")
    assert {key.partition(".")[0] for key in checkpoints} == {"0", "1", "2"}


def test_images_from_memory_are_missed_only_where_they_are_needed(
    model: LongLLaVA, pictures: list[Path], tmp_path: Path
) -> None:
    session = model.session(checkpoint_every=4)
    session.ingest([Image.open(path) for path in pictures])
    session.save(tmp_path / "session")
    loaded = model.load_session(tmp_path / "session")
    with pytest.raises(InputError, match="image 5: was shown from memory"):
        loaded.rewind(6)
    assert loaded.num_images == 9
    loaded.rewind(4)
    assert loaded.num_images == 4


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["said", "fed_text"])
def test_sessions_of_earlier_versions_are_read(
    model: LongLLaVA, session: Session, saved: Path, name: str
) -> None:
    raw = json.loads((saved / "session.json").read_text())
    for checkpoint in raw["checkpoints"]:
        checkpoint[name] = checkpoint.pop("said")
    edit(saved, checkpoints=raw["checkpoints"])
    loaded = model.load_session(saved)
    loaded.rewind(6)
    twin = session.fork()
    twin.rewind(6)
    np.testing.assert_array_equal(loaded.score("And?", ANSWER), twin.score("And?", ANSWER))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (shutil.rmtree, "not a session, it has no session.json"),
    "no-json": (lambda f: (f / "session.json").write_text("{"), "session.json: damaged"),
    "no-object": (lambda f: (f / "session.json").write_text("[]"), "session.json: damaged"),
    "version": (lambda f: edit(f, format_version=2), "session format must be 1, got 2"),
    "bundle": (lambda f: edit(f, bundle="0" * 64), "was made with another bundle"),
    "length": (lambda f: edit(f, num_positions=200_000), "the cache has 176000"),
    "missing-file": (lambda f: (f / "state.safetensors").unlink(), "missing, or changed"),
    "changed-file": (
        lambda f: flip(f / "checkpoints.safetensors"),
        "changed since they were saved",
    ),
    "shorter": (lambda f: edit(f, num_positions=9), "session.json: damaged"),
    "image": (lambda f: edit(f, images=[{}]), "session.json: damaged"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    spoil: Callable[[Path], Any], message: str, saved: Path, model: LongLLaVA
) -> None:
    spoil(saved)
    with pytest.raises(InputError, match=message):
        model.load_session(saved)


def test_a_folder_that_holds_something_else_is_left_alone(session: Session, saved: Path) -> None:
    with pytest.raises(InputError, match="must be absent or empty"):
        session.save(saved)
    session.save(saved, overwrite=True)
    (saved / "session.json").unlink()
    with pytest.raises(InputError, match=r"none of ours to overwrite"):
        session.save(saved, overwrite=True)


def test_an_interrupted_save_leaves_what_was_there(
    session: Session, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def interrupted(_: Path) -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(session_file, "_digests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.save(saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["session"]
