"""Output goes to terminals without the character, to pipes that are closed and to disks that are full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "longllava_trt"]
ROOT = Path(__file__).resolve().parents[2]


def environment(encoding: str) -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": encoding}


def run(*argv: Any, encoding: str = "utf-8", **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, argv)],
        env=environment(encoding),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        check=False,
        **options,
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_character_gets_another(encoding: str, tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, encoding=encoding, stdout=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"+ ")


def test_an_error_names_a_file_that_the_terminal_cannot_write(tmp_path: Path) -> None:
    result = run("verify", tmp_path / "bündel-猫", encoding="ascii", stdout=subprocess.PIPE)
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: ")
    assert b"b?ndel-?" in result.stderr
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize("argv", [["--help"], ["doctor"], ["verify", "BUNDLE"]], ids=" ".join)
def test_a_closed_pipe_ends_quietly(argv: list[str], tiny_bundle: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [str(tiny_bundle) if word == "BUNDLE" else word for word in argv]
    try:
        result = run(*argv, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk stays unproven")
@pytest.mark.parametrize("argv", [["--help"], ["verify", "BUNDLE"]], ids=" ".join)
def test_a_full_disk_is_one_line(argv: list[str], tiny_bundle: Path) -> None:
    argv = [str(tiny_bundle) if word == "BUNDLE" else word for word in argv]
    with Path("/dev/full").open("wb") as full:
        result = run(*argv, stdout=full)
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: output cannot be written (No space left on device)")
    assert result.stderr.count(b"\n") == 1


def test_no_stdout_at_all_is_no_failure(tiny_bundle: Path) -> None:
    result = run("verify", tiny_bundle, preexec_fn=lambda: os.close(1))
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("words", [["-q", "verify"], ["verify", "-q"]], ids=" ".join)
def test_volume_stands_before_the_verb_or_after_it(
    words: list[str], cli: Any, tiny_bundle: Path
) -> None:
    assert cli(*words, tiny_bundle).code == 0


def test_volume_before_and_after_adds_up_and_must_agree(cli: Any, tmp_path: Path) -> None:
    assert "Traceback" in cli("-v", "verify", tmp_path).err
    result = cli("-v", "verify", tmp_path, "-q")
    assert result.code == 2
    assert "not allowed with" in result.message
