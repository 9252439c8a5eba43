"""An export that is cut off anywhere goes on, and ends as if it had not been."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.digests import FileHasher
from longllava_trt.core.errors import InputError
from longllava_trt.core.publish import JOURNAL_FILE
from longllava_trt.export.resume import Journal, resume_key
from tests.export.killed_exports import contents, half_published

ROOT = Path(__file__).parents[2]
EXPERTS = {"stages": ["decoder"], "moe_quant": "w8a16"}
NUM_LAYERS = 4
LAYER_BYTES = 4 * 3 * 224 * 64 * 4
"""Experts, matrices, rows, columns, float32."""


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Let the disk be full when the layer after N is written."""
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        # a layer is synchronised, then its line in the journal
        if len(calls) > 2 * after:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


def interrupted(
    export: Callable[..., Any], checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Export until two layers are finished; returns the staging folder."""
    with monkeypatch.context() as patch:
        fill_disk(patch, after=2)
        with pytest.raises(InputError, match="No space left"):
            export(checkpoint, out, **EXPERTS)
    assert not out.exists()
    (staging,) = out.parent.glob(".out.*.staging")
    return staging


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may touch."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_full_disk_publishes_nothing_and_the_next_run_goes_on(
    checkpoint: Path, home: Path, quick_export: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = quick_export(checkpoint, home / "whole", **EXPERTS)
    assert whole.quantised_bytes == NUM_LAYERS * LAYER_BYTES
    interrupted(quick_export, checkpoint, home / "out", monkeypatch)
    with caplog.at_level(logging.INFO, "longllava_trt.export"):
        rest = quick_export(checkpoint, home / "out", **EXPERTS)
    assert rest.quantised_bytes == 2 * LAYER_BYTES
    assert rest.quantisation_errors == whole.quantisation_errors
    assert caplog.text.count("finished before") == 2
    assert contents(home / "out") == contents(home / "whole")
    assert sorted(p.name for p in home.iterdir()) == ["out", "whole"]


def test_a_finished_file_that_changed_is_made_again(
    checkpoint: Path, home: Path, quick_export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_export(checkpoint, home / "whole", **EXPERTS)
    staging = interrupted(quick_export, checkpoint, home / "out", monkeypatch)
    damaged = staging / "weights/experts-layer-003.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    rest = quick_export(checkpoint, home / "out", **EXPERTS)
    assert rest.quantised_bytes == 3 * LAYER_BYTES
    assert contents(home / "out") == contents(home / "whole")


@pytest.mark.parametrize("change", ["weights", "options"])
def test_what_was_made_of_other_inputs_is_not_used(
    change: str, checkpoint: Path, home: Path, quick_export: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    staging = interrupted(quick_export, checkpoint, home / "out", monkeypatch)
    options: dict[str, Any] = EXPERTS
    if change == "weights":
        shard = next(iter(sorted(checkpoint.glob("model-*"))))
        os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    else:
        options = EXPERTS | {"stages": ["embed", "decoder"]}
    rest = quick_export(checkpoint, home / "out", **options)
    assert rest.quantised_bytes == NUM_LAYERS * LAYER_BYTES
    assert f"removed {staging}, left by a process that was killed" in caplog.text
    assert [p.name for p in home.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    tiny_checkpoint: Path, tmp_path: Path, traces: Path, quant: str
) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.export.killed_exports",
            str(tiny_checkpoint),
            str(tmp_path),
            quant,
            "7",
            str(traces),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["moments"] > 100
    assert found["killed"] > 12


def test_half_a_bundle_is_noticed(tmp_path: Path) -> None:
    whole = {"manifest.json": b"{}", "generation_config.json": b"{1}"}
    assert half_published(tmp_path, whole) == []
    (tmp_path / "out").mkdir()
    for count, (name, data) in enumerate(whole.items(), start=1):
        (tmp_path / "out" / name).write_bytes(data)
        assert bool(half_published(tmp_path, whole)) == (count < len(whole))


@pytest.mark.slow
def test_a_command_that_is_killed_while_it_quantises_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, quick_export: Callable[..., Any]
) -> None:
    quick_export(tiny_checkpoint, tmp_path / "whole", stages=["decoder"], moe_quant="w4a16")
    command = [sys.executable, "-m", "longllava_trt", "export", str(tiny_checkpoint)]
    options = ["--stages", "decoder", "--moe-quant", "w4a16", "-q"]
    with subprocess.Popen([*command, str(tmp_path / "out"), *options], cwd=ROOT) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(f".out.*.staging/{JOURNAL_FILE}")):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    subprocess.run([*command, str(tmp_path / "out"), *options], cwd=ROOT, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_journal_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with FileHasher() as hasher:
        journal = Journal(tmp_path, hasher)
        journal.finish("a", sha256=hasher.digest(tmp_path / "a"), remembered=[1])
        with (tmp_path / JOURNAL_FILE).open("a") as file:
            file.write('{"file": "b", "sha')
        journal = Journal(tmp_path, hasher)
        assert (journal.recall("a"), journal.recall("b")) == ([1], None)
        journal.finish("b", sha256=hasher.digest(tmp_path / "b"), remembered=[2])
        journal = Journal(tmp_path, hasher)
        assert (journal.recall("a"), journal.recall("b")) == ([1], [2])
        (tmp_path / "a").unlink()
        assert Journal(tmp_path, hasher).recall("a") is None


def test_a_key_stands_for_files_and_inputs(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shard.write_text("weights")
    key = resume_key([shard], dtype="float32", options=["a"])
    assert resume_key([shard], options=["a"], dtype="float32") == key
    assert key.isalnum()
    changed = [
        resume_key([shard], dtype="float16", options=["a"]),
        resume_key([], dtype="float32", options=["a"]),
    ]
    shard.write_text("other weights")
    changed.append(resume_key([shard], dtype="float32", options=["a"]))
    assert len({key, *changed}) == 4
