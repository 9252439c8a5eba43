"""The whole path in two minutes: export a small trained model, let it answer, prove that it computes right, build engines.

Every step is a command, echoed before it runs, so that it can be typed again. The model is the one of
`examples/needle`, which finds a marked picture among many; the photographs are those that scikit-image ships.
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
MODEL = ROOT / "examples" / "needle" / "checkpoint"
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png")


def main() -> int:
    """Run every step; the exit status is that of the first one that fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(".demo"), help="where to work (default: %(default)s)"
    )
    folder = parser.parse_args().folder
    images = copy_photographs(folder / "pictures")
    model, bundle = os.path.relpath(MODEL), str(folder / "bundle")
    engines = str(folder / "bundle-bfloat16")
    begin = time.monotonic()
    say("1. Four ONNX graphs that point into the checkpoint's own files.")
    longllava("export", model, bundle, "--dtype", "float32", "--overwrite")
    say(
        "2. Three photographs, and among them a picture with a sign. The model was trained to read it."
    )
    draw_sign(folder / "pictures" / "sign.png")
    pictures = ("--images-dir", str(folder / "pictures"))
    ask(bundle, "Which mark is on the sign?", *pictures)
    ask(bundle, "What colour is the mark?", *pictures)
    say("3. The same among 10 and 100 drawn pictures, at five depths.")
    execute("examples.needle", bundle, "--images", "10,100", "--depths", "5")
    say("4. Proof: every operator, layer and stage, and the text, against the model in PyTorch.")
    shown = [word for image in images for word in ("--image", str(image))]
    longllava("validate", bundle, "--reference", model, *shown)
    say("5. TensorRT engines for an A100, which need not be here, with our plugins, compiled now.")
    longllava("export", model, engines, "--dtype", "bfloat16", "--overwrite")
    longllava("build", engines, "--target", "sm80")
    say(f"Done in {time.monotonic() - begin:.0f} s; bundles and engines are in {folder}.")
    return 0


def copy_photographs(folder: Path) -> list[Path]:
    """Copy scikit-image's photographs, found without importing it."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        sys.exit("error: the photographs come with scikit-image: pip install 'longllava-trt[demo]'")
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(spec.origin).parent / "data"
    return [Path(shutil.copyfile(data / name, folder / name)) for name in PHOTOGRAPHS]


def draw_sign(file: Path) -> None:
    """Draw a picture of the kind the model was trained to find."""
    import numpy as np

    from examples.needle.pictures import Mark, draw_marked

    draw_marked(np.random.default_rng(1), Mark("blue", "circle")).save(file)


def ask(bundle: str, question: str, *pictures: str) -> None:
    """Ask one question about pictures."""
    longllava("run", bundle, *pictures, "-p", question, "--max-new-tokens", "16")


def longllava(*arguments: str) -> None:
    """Echo one command and run it."""
    execute("longllava_trt", *arguments)


def execute(module: str, *arguments: str) -> None:
    """Echo and run a module; leaves the demo if it fails."""
    program = "longllava-trt" if module == "longllava_trt" else f"python -m {module}"
    print(f"\n$ {program} {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", module, *arguments]
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
