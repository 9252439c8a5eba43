"""The whole path in a minute: make a small model, export it, show it photographs, prove that it computes right.

Every step is a `longllava-trt` command, echoed before it runs, so that it can be typed again. The photographs are
those that scikit-image ships.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png")


def main() -> int:
    """Run every step; the exit status is that of the first one that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(".demo"), help="where to work (default: %(default)s)"
    )
    folder = parser.parse_args().folder
    images = copy_photographs(folder / "photographs")
    model, bundle = str(folder / "model"), str(folder / "bundle")
    begin = time.monotonic()
    say("1. A small checkpoint in LongLLaVA's own format. Its weights are random.")
    longllava("synth", model, "--preset", "tiny", "--overwrite")
    say("2. Four ONNX graphs that point into the checkpoint's own files.")
    longllava("export", model, bundle, "--overwrite")
    say(
        "3. Three photographs. The weights are random, so the words mean nothing; the way to them is the real one."
    )
    for image in images:
        ask(bundle, "Describe this image.", "--image", str(image))
    together = "What do these three images have in common?"
    ask(bundle, together, "--images-dir", str(folder / "photographs"))
    say("4. Proof: every operator, layer and stage, and the text, against the model in PyTorch.")
    shown = [word for image in images for word in ("--image", str(image))]
    longllava("validate", bundle, "--reference", model, *shown)
    say(f"Done in {time.monotonic() - begin:.0f} s; model and bundle are in {folder}.")
    return 0


def copy_photographs(folder: Path) -> list[Path]:
    """Copy scikit-image's photographs, found without importing it."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        sys.exit("error: the photographs come with scikit-image: pip install 'longllava-trt[demo]'")
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(spec.origin).parent / "data"
    return [Path(shutil.copyfile(data / name, folder / name)) for name in PHOTOGRAPHS]


def ask(bundle: str, question: str, *images: str) -> None:
    """Ask one question about images."""
    longllava("run", bundle, *images, "-p", question, "--max-new-tokens", "48")


def longllava(*arguments: str) -> None:
    """Echo one command and run it; leaves the demo if it fails."""
    print(f"\n$ longllava-trt {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "longllava_trt", *arguments]
    # works from a checkout that is not installed, from any folder
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status = subprocess.run(command, check=False, env=environment).returncode
    if status:
        print(f"demo: this step failed with exit status {status}", file=sys.stderr)
        sys.exit(status)


def say(text: str) -> None:
    """Tell the reader what comes."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
