"""Makes beforehand, without a GPU, what the lane can take along: the plugin library, and a small bundle with engines.

    python -m benchmarks.gpu.prepare [FOLDER] [--scale 9b 53b]      (default: build/gpu, which git ignores)

Writes FOLDER/liblongllava_plugins.so for sm_80 and sm_90 and FOLDER/bundle, a tiny model with bfloat16 engines for SM80;
with --scale also FOLDER/scale/PRESET, a bundle of a published size with its engines, 176,000 positions, but without
weights and graphs. Prints how large they are. Then:

    python -m benchmarks.gpu.run --library FOLDER/liblongllava_plugins.so --bundle FOLDER/bundle --scale FOLDER/scale
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from longllava_trt.core.manifest import WEIGHTS_FOLDER

__all__ = ["prepare"]

_LIBRARY = "liblongllava_plugins.so"


def prepare(folder: Path, *, presets: Sequence[str] = ()) -> None:
    """Build into a folder, replacing what is there.

    Args:
        folder: Where to.
        presets: Published sizes to build as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library, checkpoint, bundle = (folder / name for name in (_LIBRARY, "checkpoint", "bundle"))
    _python(
        "longllava_trt.plugins_trt.library.build",
        "--arch",
        80,
        90,
        "--dtype",
        "bf16",
        "--out",
        library,
    )
    _python("longllava_trt", "synth", checkpoint, "--preset", "tiny", "--overwrite")
    _python("longllava_trt", "export", checkpoint, bundle, "--dtype", "bfloat16", "--overwrite")
    limits = ("--max-context", 4096, "--chunk", 256, "--vision-batch", 4)
    _python("longllava_trt", "build", bundle, "--plugins", library, *limits)
    for preset in presets:
        _prepare_without_weights(folder / "scale" / preset, preset, library)
    for top in (library, bundle, *(folder / "scale" / preset for preset in presets)):
        files = [top] if top.is_file() else [f for f in top.rglob("*") if f.is_file()]
        print(f"{top}: {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")


def _prepare_without_weights(target: Path, preset: str, library: Path) -> None:
    """Build all engines of a published size, and keep what a GPU needs to run them with random weights."""
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        checkpoint, bundle = Path(scratch, "checkpoint"), Path(scratch, "bundle")
        _python("longllava_trt", "synth", checkpoint, "--preset", preset, "--sparse")
        _python("longllava_trt", "export", checkpoint, bundle, "--dtype", "bfloat16")
        _python("longllava_trt", "build", bundle, "--plugins", library)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(bundle, target, ignore=shutil.ignore_patterns(WEIGHTS_FOLDER, "*.onnx"))


def _python(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/gpu"))
    parser.add_argument("--scale", nargs="+", choices=("9b", "53b"), default=())
    args = parser.parse_args()
    prepare(args.folder, presets=args.scale)


if __name__ == "__main__":
    _main()
