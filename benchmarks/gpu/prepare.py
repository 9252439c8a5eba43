"""Makes beforehand, without a GPU, what a run on one takes along: plugin libraries, and bundles.

    python -m benchmarks.gpu.prepare [FOLDER] [--engines] [--scale 9b 53b]      (default: build/gpu, which git ignores)

Writes the plugin library for sm_80 and sm_90, one for sm_80 alone, the bundle of the small trained checkpoint with what
ONNX Runtime answered, and for each size of --scale a bundle without weights and graphs. --engines adds a tiny bundle with
bfloat16 engines for SM80, and engines to each size of --scale. Prints how large they are. Then:

    python -m benchmarks.gpu.run --library FOLDER/liblongllava_plugins.so --bundle FOLDER/needle --scale FOLDER/scale
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.answers import write_expected
from longllava_trt.core.manifest import WEIGHTS_FOLDER

__all__ = ["prepare"]

_LIBRARY = "liblongllava_plugins.so"
_TRAINED = Path(__file__).resolve().parents[2] / "examples" / "needle" / "checkpoint"


def prepare(folder: Path, *, presets: Sequence[str] = (), engines: bool = False) -> None:
    """Build into a folder, replacing what is there.

    Args:
        folder: Where to.
        presets: Published sizes to make bundles of as well.
        engines: Build engines too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / _LIBRARY
    alone = library.with_stem(f"{library.stem}_sm80")
    for file, archs in ((library, (80, 90)), (alone, (80,))):
        _python(
            "longllava_trt.plugins_trt.library.build",
            *("--arch", *archs, "--dtype", "bf16", "--out", file),
        )
    trained = folder / "needle"
    _python("longllava_trt", "export", _TRAINED, trained, "--dtype", "float32", "--overwrite")
    write_expected(trained)
    made = [library, alone, trained]
    if engines:
        made.append(_prepare_engines(folder, library))
    for preset in presets:
        target = folder / "scale" / preset
        _prepare_without_weights(target, preset, library if engines else None)
        made.append(target)
    for top in made:
        files = [top] if top.is_file() else [f for f in top.rglob("*") if f.is_file()]
        print(f"{top}: {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")


def _prepare_engines(folder: Path, library: Path) -> Path:
    """Make a tiny bundle with engines, and return it."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    _python("longllava_trt", "synth", checkpoint, "--preset", "tiny", "--overwrite")
    _python("longllava_trt", "export", checkpoint, bundle, "--dtype", "bfloat16", "--overwrite")
    limits = ("--max-context", 4096, "--chunk", 256, "--vision-batch", 4)
    _python("longllava_trt", "build", bundle, "--plugins", library, *limits)
    return bundle


def _prepare_without_weights(target: Path, preset: str, library: Path | None) -> None:
    """Keep of a published size what a GPU needs to run it with random weights, engines if there is a library."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        checkpoint, bundle = Path(scratch, "checkpoint"), Path(scratch, "bundle")
        _python("longllava_trt", "synth", checkpoint, "--preset", preset, "--sparse")
        _python("longllava_trt", "export", checkpoint, bundle, "--dtype", "bfloat16")
        if library is not None:
            _python("longllava_trt", "build", bundle, "--plugins", library)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(bundle, target, ignore=shutil.ignore_patterns(WEIGHTS_FOLDER, "*.onnx"))


def _python(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/gpu"))
    parser.add_argument("--scale", nargs="+", choices=("9b", "53b"), default=())
    parser.add_argument("--engines", action="store_true", help="build engines for SM80 too")
    args = parser.parse_args()
    prepare(args.folder, presets=args.scale, engines=args.engines)


if __name__ == "__main__":
    _main()
