"""What must import where something is not installed: a deployment image has no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROBE = """
import importlib, importlib.abc, pkgutil, sys
from pathlib import Path

blocked, packages, skipped = (set(arg.split(",")) for arg in sys.argv[1:4])


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Blocker())
names = set(packages)
for package in packages:
    names |= {m.name for m in pkgutil.walk_packages([str(Path(package))], package + ".")}
failed = {}
for name in sorted(names):
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
RUNS_BUNDLES = ("longllava_trt", "plugins_trt", "runtime")
ABOVE = ("longllava_trt.validation",)
"""Compares with the oracle, so it may need torch; the command line imports it only when asked to."""
ROOF = (*ABOVE, "longllava_trt.cli", "longllava_trt.__main__")
PURE = (
    "__init__",
    "launch",
    "plan",
    "naive",
    "sparse_moe_formats",
    "sparse_moe_launch",
    "sparse_moe_naive",
)
KERNELS = tuple(
    f"plugins_trt.kernels.{file.stem}"
    for file in (ROOT / "plugins_trt" / "kernels").glob("*.py")
    if file.stem not in PURE
)
"""Triton kernels and what lists them, all but the launch arithmetic and the twins."""

CASES = {
    "runtime-without-torch": (TORCH, RUNS_BUNDLES, ABOVE),
    "runtime-without-exporter": (EXPORTER, RUNS_BUNDLES, ABOVE),
    "runtime-without-oracle": (("reference", "export"), RUNS_BUNDLES, ABOVE),
    "runtime-without-triton": (("triton",), RUNS_BUNDLES, (*ABOVE, *KERNELS)),
    "floor-without-anything-heavy": (
        (*TORCH, *EXPORTER, "onnxruntime", "onnxruntime_extensions", "numba", "tensorrt", "triton"),
        ("longllava_trt",),
        ROOF,
    ),
}


def import_all(
    blocked: tuple[str, ...], packages: tuple[str, ...], *, skipped: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    """Import every module of some packages in a fresh interpreter that lacks others."""
    arguments = [",".join(names) for names in (blocked, packages, skipped)]
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("blocked", "packages", "skipped"), CASES.values(), ids=CASES)
def test_modules_import_without(
    blocked: tuple[str, ...], packages: tuple[str, ...], skipped: tuple[str, ...]
) -> None:
    result = import_all(blocked, packages, skipped=skipped)
    assert result.returncode == 0, result.stderr
    for package in packages:
        assert f"imported {package}\n" in result.stdout
    assert "imported longllava_trt.contracts\n" in result.stdout


def test_a_module_that_needs_torch_is_noticed() -> None:
    result = import_all(TORCH, ("reference",), skipped=("none",))
    assert result.returncode == 1
    assert "reference.model: ModuleNotFoundError('torch is blocked')" in result.stderr
