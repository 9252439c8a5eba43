"""`auto` takes the first backend that runs a bundle on the GPU at hand, says why, and costs nothing where there is none."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.engine_record import ENGINES_FOLDER, EngineRecord, PluginRecord
from longllava_trt.core.errors import InputError, ManifestError, MissingDependencyError
from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime import open_backend as opening
from longllava_trt.runtime.backends.base import BackendLimits
from longllava_trt.runtime.backends.ort.backend import OrtBackend
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.open_backend import open_backend

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from longllava_trt.runtime.model import LongLLaVA
model = LongLLaVA.from_bundle(sys.argv[1])
print(model.runner.backend.name, [m for m in ("torch", "triton", "tensorrt_rtx") if m in sys.modules])
"""


@dataclass
class Machine:
    """Stand-in for the machine as `open_backend` sees it; None where nothing is wrong."""

    target: str | None = "sm80"
    trt: Exception | None = None
    packages: Exception | None = None
    memory: Exception | None = None


class FakeBackend:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a GPU that lacks nothing."""
    from longllava_trt.runtime.backends.kernels import backend as kernels
    from longllava_trt.runtime.backends.trt import backend as trt
    from longllava_trt.runtime.backends.trt import engines

    machine = Machine()

    def fail(error: Exception | None) -> None:
        if error is not None:
            raise error

    def open_kernels(*_: Any, **__: Any) -> FakeBackend:
        fail(machine.memory)
        return FakeBackend("kernels")

    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(opening, "current_target", lambda: machine.target)
    monkeypatch.setattr(opening, "check_machine", lambda _: fail(machine.packages))
    monkeypatch.setattr(engines, "open_engines", lambda _: fail(machine.trt))
    monkeypatch.setattr(trt, "TrtBackend", lambda _: FakeBackend("trt"))
    monkeypatch.setattr(kernels, "KernelsBackend", open_kernels)
    return machine


@pytest.fixture
def chosen(tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """Open a bundle that has engines for some GPUs; returns the backend's name and the line of the log."""

    def choose(*targets: str, options: RunOptions | None = None) -> tuple[str, logging.LogRecord]:
        for target in targets:
            folder = tmp_path / ENGINES_FOLDER / f"{target}-trt-10.15"
            folder.mkdir(parents=True)
            EngineRecord(
                target=target,
                flavour="tensorrt",
                tensorrt_version="10.15",
                dtype="float32",
                plugins=PluginRecord(file="", nbytes=0, sha256="", versions={}),
                stages={},
                options={},
            ).save(folder)
        caplog.set_level(logging.INFO, "longllava_trt")
        caplog.clear()
        found = open_backend(
            tmp_path, Manifest.load(tiny_bundle), options or RunOptions(), max_context=4096
        )
        (record,) = caplog.records
        return found.name, record

    return choose


def test_without_a_gpu_it_is_onnx_runtime(machine: Machine, chosen: Any) -> None:
    machine.target = None
    name, record = chosen("sm80")
    assert name == "ort"
    assert record.levelno == logging.INFO
    assert record.getMessage() == "backend ort: this machine has no usable NVIDIA GPU"


def test_without_a_gpu_nothing_is_imported_for_it(tiny_bundle: Path) -> None:
    from longllava_trt.plugins_trt.device import current_target

    if current_target() is not None:
        pytest.skip("there is a GPU: that none costs nothing stays unproven here")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ort []\n", done.stderr


def test_engines_for_this_gpu_come_first(machine: Machine, chosen: Any) -> None:
    name, record = chosen("sm80", "sm90")
    assert name == "trt"
    assert record.levelno == logging.INFO
    assert record.getMessage() == "backend trt: runs this bundle on the GPU (sm80)"


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ((), "the bundle has engines for no GPU"),
        (("sm90", "sm120"), "engines for sm120, sm90"),
    ],
    ids=str,
)
def test_without_engines_for_this_gpu_it_is_our_kernels(
    machine: Machine, chosen: Any, targets: tuple[str, ...], why: str
) -> None:
    # nothing of TensorRT is asked
    machine.trt = AssertionError("imported in vain")
    name, record = chosen(*targets)
    assert name == "kernels"
    assert record.levelno == logging.INFO
    assert "backend kernels: runs this bundle on the GPU (sm80); not trt (" in record.getMessage()
    assert why in record.getMessage()


@pytest.mark.parametrize(
    "error",
    [
        MissingDependencyError("TensorRT: tensorrt is not installed"),
        ManifestError("engines need tensorrt 10.15, got tensorrt 10.16"),
    ],
    ids=["package", "version"],
)
def test_engines_that_cannot_be_opened_are_passed_over(
    machine: Machine, chosen: Any, error: Exception
) -> None:
    machine.trt = error
    name, record = chosen("sm80")
    assert name == "kernels"
    assert str(error) in record.getMessage()


def test_a_damaged_record_is_passed_over(machine: Machine, chosen: Any, tmp_path: Path) -> None:
    folder = tmp_path / ENGINES_FOLDER / "sm80-trt-10.15"
    folder.mkdir(parents=True)
    (folder / "engine.json").write_text("{")
    name, record = chosen()
    assert name == "kernels"
    assert "engine.json: damaged" in record.getMessage()


@pytest.mark.parametrize("what", ["packages", "memory"])
def test_a_gpu_that_is_left_idle_is_warned_about(machine: Machine, chosen: Any, what: str) -> None:
    setattr(machine, what, InputError("kernels: need 23.0 GiB on the GPU"))
    name, record = chosen("sm90")
    assert name == "ort"
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("backend ort: not the GPU (sm80) but the CPU; not trt (")
    assert message.endswith("kernels (kernels: need 23.0 GiB on the GPU)")


def test_interpreted_kernels_are_never_chosen(
    machine: Machine, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    name, record = chosen()
    assert name == "ort"
    assert "TRITON_INTERPRET=1 sends kernels to the CPU" in record.getMessage()


def test_a_name_is_taken_at_its_word(machine: Machine, tiny_bundle: Path) -> None:
    manifest = Manifest.load(tiny_bundle)
    assert (
        open_backend(tiny_bundle, manifest, RunOptions(backend="ort"), max_context=4096).name
        == "ort"
    )
    assert (
        open_backend(tiny_bundle, manifest, RunOptions(backend="trt"), max_context=4096).name
        == "trt"
    )
    machine.packages = MissingDependencyError("kernels: needs torch")
    with pytest.raises(MissingDependencyError, match="needs torch"):
        open_backend(tiny_bundle, manifest, RunOptions(backend="kernels"), max_context=4096)


class OtherSizes(OrtBackend):
    """Likes other sizes than ONNX Runtime does."""

    limits = BackendLimits(
        longest_chunk=64,
        largest_vision_batch=8,
        preferred_chunk=48,
        preferred_vision_batch=3,
    )


def open_with(bundle: Path, options: RunOptions) -> LongLLaVA:
    manifest = Manifest.load(bundle)
    backend = OtherSizes(bundle, manifest, kernels="fast", num_threads=1)
    return LongLLaVA(bundle, manifest, options, backend=backend)


def test_sizes_that_nobody_says_are_the_backends(tiny_bundle: Path) -> None:
    runner = open_with(tiny_bundle, RunOptions()).runner
    assert (runner.chunk_size, runner.vision_batch) == (48, 3)
    assert runner.chunker.longest == 48
    used = runner.used_options
    assert (used.backend, used.chunk_size, used.vision_batch) == ("ort", 48, 3)
    ort = LongLLaVA.from_bundle(tiny_bundle, RunOptions(backend="ort")).runner
    assert (ort.chunk_size, ort.vision_batch) == (512, 4)


def test_sizes_that_are_said_stand_within_the_limit(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "longllava_trt")
    runner = open_with(tiny_bundle, RunOptions(chunk_size=100, vision_batch=5)).runner
    assert (runner.chunk_size, runner.vision_batch) == (64, 5)
    assert "chunk_size: 100 is more than the backend takes, 64 is used" in caplog.text


def test_chunks_are_of_a_size_that_the_backend_feeds_in_one_call(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "longllava_trt")
    monkeypatch.setattr(OtherSizes, "limits", BackendLimits(chunk_sizes=(64, 16, 4, 1)))
    for wanted, used in ((100, 64), (64, 64), (63, 16), (1, 1)):
        assert open_with(tiny_bundle, RunOptions(chunk_size=wanted)).runner.chunk_size == used
    assert "chunk_size: 16 is used, the size below 63 that needs one call" in caplog.text


@pytest.mark.parametrize("backend", ["auto", "ort", "trt"])
def test_a_scan_needs_the_backend_that_has_it(backend: Any) -> None:
    with pytest.raises(InputError, match=f"scan mamba-ssm needs backend kernels, got {backend}"):
        RunOptions(backend=backend, scan="mamba-ssm")
    assert RunOptions(backend="kernels", scan="mamba-ssm").scan == "mamba-ssm"
    with pytest.raises(InputError, match="scan must be one of ours, mamba-ssm, got 'x'"):
        RunOptions(scan="x")  # type: ignore[arg-type]
