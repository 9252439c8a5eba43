"""Imports where something is not installed: a deployment image has no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import importlib, importlib.abc, pkgutil, sys
from pathlib import Path

blocked, skipped = (tuple(arg.split(",")) for arg in sys.argv[1:3])


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in blocked):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Blocker())
failed = {}


def walk(folder, prefix):
    # pkgutil.walk_packages would import packages
    for module in pkgutil.iter_modules([str(folder)], prefix):
        yield module.name
        if module.ispkg:
            yield from walk(folder / module.name.rpartition(".")[2], module.name + ".")


for name in sorted(walk(Path("longllava_trt"), "longllava_trt.")):
    if not any(name == s or name.startswith(s + ".") for s in skipped):
        try:
            importlib.import_module(name)
        except Exception as err:
            failed[name] = repr(err)
        else:
            print("imported", name)
sys.exit("\\n".join(f"{name}: {error}" for name, error in failed.items()) or 0)
"""

TORCH = ("torch", "transformers")
EXPORTER = ("onnxscript", "onnx_ir")
_ABOVE = "__main__ bench cli diagnosis inspection planning validation".split()
ROOF = tuple(f"longllava_trt.{name}" for name in _ABOVE)
EXPORTS = ("longllava_trt.export", "longllava_trt.reference")
RUNS_BUNDLES = (*EXPORTS, "longllava_trt.validation")
"""Rooms that running a bundle does without; validation compares with the oracle, so it may need torch."""
PURE = ("__init__", "cached_attention_naive", "naive", "sparse_moe_formats", "sparse_moe_naive")
KERNELS = tuple(
    f"longllava_trt.plugins_trt.kernels.{file.stem}"
    for file in (ROOT / "plugins_trt" / "kernels").glob("*.py")
    if file.stem not in PURE
)
"""Triton kernels and the lists of them; the plain versions need no Triton."""
ASKS_FIRST = ("__init__", "requirements", "weight_plan")
ON_KERNELS = tuple(
    f"longllava_trt.runtime.backends.kernels.{file.stem}"
    for file in (ROOT / "runtime" / "backends" / "kernels").glob("*.py")
    if file.stem not in ASKS_FIRST
)
"""The backend that is PyTorch and Triton, all but what says that they are missing."""

CASES = {
    "runtime-without-torch": (TORCH, (*RUNS_BUNDLES, *ON_KERNELS)),
    "runtime-without-exporter": (EXPORTER, RUNS_BUNDLES),
    "runtime-without-oracle": (EXPORTS, RUNS_BUNDLES),
    "runtime-without-triton": (("triton",), (*RUNS_BUNDLES, *KERNELS, *ON_KERNELS)),
    "floor-without-anything-heavy": (
        (*TORCH, *EXPORTER, "onnxruntime", "onnxruntime_extensions", "numba", "tensorrt", "triton"),
        (*EXPORTS, *ROOF, "longllava_trt.plugins_trt", "longllava_trt.runtime"),
    ),
}


def import_all(
    blocked: tuple[str, ...], skipped: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """Import every module but some in a fresh interpreter that lacks others."""
    arguments = [",".join(names) for names in (blocked, skipped)]
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("blocked", "skipped"), CASES.values(), ids=CASES)
def test_modules_import_without(blocked: tuple[str, ...], skipped: tuple[str, ...]) -> None:
    result = import_all(blocked, skipped)
    assert result.returncode == 0, result.stderr
    for module in ("longllava_trt.core.errors", "longllava_trt.models.contracts"):
        assert f"imported {module}\n" in result.stdout


def test_a_module_that_needs_torch_is_noticed() -> None:
    result = import_all(TORCH, ("none",))
    assert result.returncode == 1
    assert "longllava_trt.reference.model: ModuleNotFoundError('torch is blocked')" in result.stderr
