"""Decode steps of a Jamba text decoder, ours beside mobius-onnx's, with transformers' Jamba as the judge, in one run.

    python -m benchmarks.mobius [--preset mini]

mobius-onnx is no dependency, and what it needs besides is here already, so that a folder of its own is enough:

    pip install --no-deps --target FOLDER mobius-onnx==0.1.0 onnx-shape-inference==0.4.0
    PYTHONPATH=FOLDER python -m benchmarks.mobius

Same weights, float32, batch 1, same threads, plain `onnxruntime` for mobius. All are fed one
position a call from the first on, since mobius-onnx 0.1.0's graph takes no more: with two, ONNX Runtime fails in a Squeeze.
Prints milliseconds a step (median), the ratio to ours and the largest difference of the last logits from transformers',
then one JSON line. Exit status 1 if ours differs, or mobius's where its mathematics is Jamba's; 2 if it is not installed.

mobius-onnx 0.1.0's Jamba is not Jamba in two ways. It rotates queries and keys; positions of zero, fed here, undo that.
And it makes the weights of the chosen experts sum to one, which nothing outside the graph undoes: with experts to choose
from its logits are wrong, and only the time of its step says anything. `--preset tiny-dense` has none, and it agrees.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch

from benchmarks.transformers_jamba import jamba_from_reference
from benchmarks.turns import take_turns
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.backends.ort.decoder import Decoder
from longllava_trt.runtime.backends.ort.session import OnnxSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Of logits, relative to the largest of transformers'."""

_INSTALL = (
    "pip install --no-deps --target FOLDER mobius-onnx==0.1.0 onnx-shape-inference==0.4.0, "
    "and run with PYTHONPATH=FOLDER"
)

Step = Callable[[int], "NDArray[np.float32]"]


@dataclass
class Contestant:
    """One way to run the decoder."""

    start: Callable[[], Step]
    """Returns a function that takes the next token and returns the logits after it."""
    seconds: list[float] = field(default_factory=list)

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Feed one token after another; returns the last logits."""
        step = self.start()
        for token in tokens:
            begin = time.perf_counter()
            logits = step(token)
            self.seconds.append(time.perf_counter() - begin)
        return logits


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line; returns 1 if decoders disagree that should not."""
    parse = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    small = [name for name in PRESETS if name not in ("9b", "53b")]
    parse.add_argument("--preset", default="mini", choices=small)
    parse.add_argument("--steps", type=int, default=64, help="tokens fed (default 64)")
    parse.add_argument("--threads", type=int, default=2, help="of each (default 2)")
    parse.add_argument("--repeats", type=int, default=3, help="of each (default 3)")
    args = parse.parse_args(arguments)
    if importlib.util.find_spec("mobius") is None:
        print(f"error: mobius-onnx is not installed: {_INSTALL}", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    config = PRESETS[args.preset].decoder
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, args.steps).tolist()
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = contestants(Path(folder), args.preset, args.threads)
        for way in ways.values():
            way.run(tokens[:4])
            way.seconds.clear()
        for name, way in take_turns(ways.items(), rounds=args.repeats):
            logits[name] = way.run(tokens)
    medians = {name: 1e3 * statistics.median(way.seconds) for name, way in ways.items()}
    truth = logits["transformers"]
    differences = {
        name: float(np.abs(other - truth).max() / np.abs(truth).max())
        for name, other in logits.items()
    }
    print(f"{'':14}{'x ours':>8}{'ms a step':>11}{'difference':>12}")
    for name, median in medians.items():
        print(f"{name:14}{median / medians['ours']:8.2f}{median:11.2f}{differences[name]:12.0e}")
    setting = {key: getattr(args, key) for key in ("preset", "steps", "threads", "repeats")}
    found = {"ms_per_step": medians, "relative_difference": differences}
    print(json.dumps(setting | {"mobius_onnx": version("mobius-onnx")} | found))
    judged = ["ours", "mobius"] if not config.moe_layers else ["ours"]
    return 0 if all(differences[name] < TOLERANCE for name in judged) else 1


def contestants(folder: Path, preset: str, threads: int) -> dict[str, Contestant]:
    """Write a checkpoint and load it three times."""
    write_checkpoint(folder / "model", preset=preset)
    export_bundle(folder / "model", folder / "bundle", dtype="float32", stages=["decoder"])
    jamba: Any = jamba_from_reference(load_model(folder / "model"))
    jamba.save_pretrained(folder / "jamba")
    embedding = jamba.get_input_embeddings().weight.numpy()
    return {
        "ours": _ours(folder / "bundle", embedding, threads),
        "mobius": _mobius(folder, threads),
        "transformers": _transformers(jamba),
    }


def _ours(bundle: Path, embedding: NDArray[np.float32], threads: int) -> Contestant:
    manifest = Manifest.load(bundle)
    decoder = Decoder(OnnxSession(bundle, manifest, "decoder", num_threads=threads))

    def start() -> Step:
        state = decoder.new_state(capacity=1024)
        return lambda token: decoder.step(embedding[None, [token]], state)

    return Contestant(start)


def _transformers(jamba: Any) -> Contestant:
    def start() -> Step:
        cache: Any = None

        @torch.no_grad()
        def step(token: int) -> NDArray[np.float32]:
            nonlocal cache
            output = jamba(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits: NDArray[np.float32] = output.logits[0, -1].numpy()
            return logits

        return step

    return Contestant(start)


def _mobius(folder: Path, threads: int) -> Contestant:
    # it looks for a model's name on the hub before it looks at the disk
    os.environ["HF_HUB_OFFLINE"] = "1"
    mobius: Any = importlib.import_module("mobius")
    mobius.build(str(folder / "jamba")).save(str(folder / "mobius"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        folder / "mobius" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    empty = {
        value.name: np.zeros([_size(dim) for dim in value.shape], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = [value.name for value in session.get_outputs()]

    def start() -> Step:
        state, past = empty, 0

        def step(token: int) -> NDArray[np.float32]:
            nonlocal state, past
            past += 1
            feed = {
                "input_ids": np.array([[token]]),
                "attention_mask": np.ones((1, past), np.int64),
                "position_ids": np.zeros((1, 1), np.int64),
            }
            found = dict(zip(names, session.run(names, feed | state), strict=True))
            state = {key: found[key.replace("past_key_values", "present")] for key in state}
            logits: NDArray[np.float32] = found["logits"][0, -1]
            return logits

        return step

    return Contestant(start)


def _size(dim: int | str) -> int:
    """Return a dimension of the state before the first token: one sequence, no position."""
    if isinstance(dim, int):
        return dim
    return 1 if dim == "batch" else 0


if __name__ == "__main__":
    sys.exit(main())
