"""Hashes against hashlib, with holes anywhere; each file once, and again after a change."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from longllava_trt.core import digests
from longllava_trt.core.digests import FileHasher

BLOCK = 8 * 2**20


def write(path: Path, size: int, runs: list[tuple[int, int]]) -> Path:
    """Write a file of holes, with random data at each (begin, length)."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for begin, length in runs:
            file.seek(begin)
            file.write(rng.bytes(length))
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("size", "runs"),
    [
        (0, []),
        (1, [(0, 1)]),
        (BLOCK + 4097, [(0, BLOCK + 4097)]),
        (1, []),
        (2 * BLOCK + 5, []),
        (3 * BLOCK, [(0, 100)]),
        (3 * BLOCK + 7, [(2 * BLOCK + 9, 4000)]),
        (3 * BLOCK, [(0, 8), (BLOCK, BLOCK + 1), (3 * BLOCK - 3, 3)]),
    ],
    ids=["empty", "byte", "data", "hole-1", "hole", "head", "middle", "mixed"],
)
def test_digest_is_that_of_the_bytes(
    tmp_path: Path, size: int, runs: list[tuple[int, int]]
) -> None:
    path = write(tmp_path / "file", size, runs)
    want = hashlib.sha256(path.read_bytes()).hexdigest()
    with FileHasher() as hasher:
        assert hasher.digest(path) == want


def test_without_seek_hole_holes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "file", 2 * BLOCK, [(5, 5)])
    monkeypatch.delattr(os, "SEEK_DATA")
    with FileHasher() as hasher:
        assert hasher.digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_hashed_once_whatever_its_name_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    real = digests._digest

    def spy(path: Path, *rest: object) -> str:
        hashed.append(path.name)
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(digests, "_digest", spy)
    path = tmp_path / "first"
    path.write_bytes(b"one")
    (tmp_path / "second").hardlink_to(path)
    (tmp_path / "third").symlink_to(path)
    with FileHasher() as hasher:
        hasher.start(path)
        assert len({hasher.digest(tmp_path / name) for name in ("second", "third")}) == 1
        assert hashed == ["first"]
        path.write_bytes(b"two and more")
        assert hasher.digest(path) == hashlib.sha256(b"two and more").hexdigest()
    assert len(hashed) == 2


def test_leaving_early_abandons_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "huge", 2**42, [])
    begin = time.monotonic()
    with FileHasher() as hasher:
        hasher.start(path)
    assert time.monotonic() - begin < 5  # all of it would take half an hour


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with FileHasher() as hasher, pytest.raises(FileNotFoundError):
        hasher.digest(tmp_path / "gone")
