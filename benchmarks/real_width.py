"""Run a few layers of the published width with random weights from image to logits, and bound the difference.

ONNX Runtime, in float32, must be as near to PyTorch in bfloat16 as twice what bfloat16 itself costs PyTorch. Contestants run
one after another, each in a process of its own. Prints a table and, as its last line, one JSON document. Exit status 1 if
the bound is missed. The default writes 4.4 GB and takes 10 GiB of memory.

    python -m benchmarks.real_width
    python -m benchmarks.real_width --preset tiny --layers 8
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.commands import longllava

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

CONTESTANTS = ("torch-float32", "torch-bfloat16", "onnxruntime-float32")
QUESTION = "What is in the picture?"
ANSWER = tuple(range(100, 108))
"""Fed after the question, so that steps are compared as well."""
FACTOR = 2.0


def main() -> int:
    """Make a checkpoint, run everybody, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="9b", help="width (default 9b)")
    parser.add_argument(
        "--layers", default="5", help="decoder layers (default 5, one of attention)"
    )
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        _run(args.contestant, args.folder)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        dtype = ("--dtype", "bfloat16")
        longllava(
            "synth", folder / "model", "--preset", args.preset, "--layers", args.layers, *dtype
        )
        longllava("export", folder / "model", folder / "bundle", "--dtype", "float32")
        logits, usage = {}, {}
        for name in CONTESTANTS:
            usage[name] = _spawn(name, folder)
            logits[name] = np.load(folder / f"{name}.npy")
    exact, half, ours = (logits[name] for name in CONTESTANTS)
    errors = {
        "bfloat16 against float32, PyTorch": _relative(half, exact),
        "ONNX Runtime against bfloat16": _relative(ours, half),
        "ONNX Runtime against float32": _relative(ours, exact),
    }
    bound = FACTOR * errors["bfloat16 against float32, PyTorch"]
    holds = errors["ONNX Runtime against bfloat16"] <= bound
    for name, (seconds, gib) in usage.items():
        print(f"{name:36}{seconds:>8.1f} s{gib:>8.1f} GiB")
    for name, error in errors.items():
        print(f"{name:36}{error:>10.2e} relative RMS")
    print(f"{'bound':36}{bound:>10.2e} {'holds' if holds else 'MISSED'}")
    print(
        json.dumps({"preset": args.preset, "layers": args.layers, "errors": errors, "usage": usage})
    )
    return 0 if holds else 1


def _spawn(name: str, folder: Path) -> tuple[float, float]:
    """Run one contestant; returns seconds and peak memory in GiB."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.real_width", "--contestant", name]
    process = subprocess.Popen([*command, "--folder", str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {name} ended with exit status {process.returncode}")
    return round(time.monotonic() - begin, 1), round(usage.ru_maxrss / 2**20, 2)


def _run(name: str, folder: Path) -> None:
    backend, dtype = name.split("-")
    rows = _onnxruntime(folder) if backend == "onnxruntime" else _torch(folder, dtype)
    np.save(folder / f"{name}.npy", rows)


def _onnxruntime(folder: Path) -> NDArray[np.float32]:
    from longllava_trt.runtime.model import LongLLaVA, RunOptions

    model = LongLLaVA.from_bundle(folder / "bundle", RunOptions(backend="ort"))
    session = model.session()
    return session.score(QUESTION, ANSWER, images=[_picture()])


def _torch(folder: Path, dtype: str) -> NDArray[np.float32]:
    import torch

    from longllava_trt.reference.checkpoint import load_model
    from longllava_trt.reference.generate import assemble_embeds, prefill
    from longllava_trt.reference.prompt import build_prompt, tokenize_prompt, wrap_images
    from longllava_trt.runtime.inputs.pixels import preprocess_batch
    from longllava_trt.runtime.inputs.processor import load_processor_config
    from longllava_trt.runtime.text.tokenizer import ChatTokenizer

    checkpoint, bundle = folder / "model", folder / "bundle"
    model = load_model(checkpoint, dtype=getattr(torch, dtype))
    prompt = build_prompt(wrap_images(QUESTION, num_images=1))
    ids = tokenize_prompt(prompt, ChatTokenizer(bundle))
    pixels = torch.from_numpy(preprocess_batch([_picture()], load_processor_config(bundle)))
    with torch.no_grad():
        images = model.project(model.encode_images(pixels.to(getattr(torch, dtype))))
        logits, cache = prefill(model, assemble_embeds(model, ids, images), chunk=None)
        rows: list[Any] = [logits[0, -1]]
        for token in ANSWER[:-1]:
            output = model.decode(model.embed(torch.tensor([[token]])), cache)
            cache = output.cache
            rows.append(output.logits[0, -1])
    return torch.stack(rows).float().numpy()


def _picture() -> Image.Image:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(256, size=(12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC)


def _relative(values: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    difference = values.astype(np.float64) - truth
    return float(np.sqrt((difference**2).mean() / (truth.astype(np.float64) ** 2).mean()))


if __name__ == "__main__":
    sys.exit(main())
