"""The decoder on a CPU, beside transformers' Jamba with the same weights and threads, in one run.

    python -m benchmarks.decoder [--preset mini] [--dtype bfloat16]

Prefill of a prompt in one call and greedy decoding after it, batch 1. Prints tokens a second (median), our ratio to each
row and the largest difference of its logits from transformers', then one JSON line; exit status 1 if decoders disagree.

    ours            ONNX Runtime with the fast kernels
    bodies          ONNX Runtime with the file's own function bodies, nothing registered
    transformers    JambaForCausalLM, eager, with its own cache
    compiled        the same, its decode steps through torch.compile; the prompt is fed eagerly, as transformers' own
                    generate does, since compiling unrolls the scan's loop over positions (a minute for 64 of them).
                    The first steps compile and are not timed. If it fails, the row says why
    bfloat16        transformers with weights and arithmetic in bfloat16; its difference is shown and not judged
    limit           the least time this machine could take: for a token, reading every weight that it touches, as it
                    is stored (no embedding, no expert that was not chosen), at the best measured rate of reading memory;
                    for the prompt, its operations at the fastest rate of ONNX Runtime's MatMul at the model's sizes.
                    The ratio is the share of it that we reach

Everybody else computes in float32. `--dtype` is how the checkpoint stores its weights, as real ones do in bfloat16; the
values are the same for all.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.machine_limits import MachineLimits, product_shapes
from benchmarks.transformers_jamba import jamba_from_reference
from benchmarks.turns import take_turns
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.spec import ModelSpec
from longllava_trt.planning.flops import decoder_flops
from longllava_trt.planning.memory import count_weights
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.backends.ort.decoder import Decoder
from longllava_trt.runtime.backends.ort.kernels import Kernels
from longllava_trt.runtime.backends.ort.session import OnnxSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Of logits, relative to the largest of transformers'."""
ROWS = ("ours", "bodies", "transformers", "compiled", "bfloat16")
JUDGED = ("ours", "bodies", "transformers", "compiled")

_WARM_UP_STEPS = 4
"""torch.compile compiles the first, and once more when a length has changed."""

Rates = dict[str, dict[str, float]]


@dataclass
class Contestant:
    """One way to run the decoder; logits are of the position after what was fed."""

    prefill: Callable[[], NDArray[np.float32]]
    step: Callable[[int], NDArray[np.float32]]
    prefill_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """After the last position that was fed."""


class OnnxContestant:
    """A bundle's decoder."""

    def __init__(
        self, bundle: Path, kernels: Kernels, embeds: NDArray[np.float32], room: int
    ) -> None:
        session = OnnxSession(
            bundle,
            Manifest.load(bundle),
            "decoder",
            kernels=kernels,
            num_threads=torch.get_num_threads(),
        )
        self.decoder, self.embeds, self.room = Decoder(session), embeds, room

    def prefill(self) -> NDArray[np.float32]:
        """Start anew and feed the prompt."""
        length = self.embeds.shape[1] - self.room
        self.state = self.decoder.new_state(capacity=self.embeds.shape[1])
        return self.decoder.step(self.embeds[:, :length], self.state)

    def step(self, index: int) -> NDArray[np.float32]:
        """Feed one more position."""
        at = self.embeds.shape[1] - self.room + index
        return self.decoder.step(self.embeds[:, at : at + 1], self.state)


class JambaContestant:
    """transformers' Jamba, in its own dtype.

    Args:
        jamba: The model.
        embeds: Prompt and what is fed after it. [1, positions, hidden_size], float32.
        room: How many positions come after the prompt.
        step_with: Runs single steps in the model's place.
    """

    def __init__(
        self, jamba: Any, embeds: NDArray[np.float32], room: int, *, step_with: Any = None
    ) -> None:
        self.jamba, self.room = jamba, room
        self.stepper = jamba if step_with is None else step_with
        self.embeds = torch.from_numpy(embeds).to(jamba.dtype)

    def _feed(self, model: Any, embeds: torch.Tensor, cache: Any) -> NDArray[np.float32]:
        output = model(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        self.cache = output.past_key_values
        logits: NDArray[np.float32] = output.logits[0, -1].float().numpy()
        return logits

    def prefill(self) -> NDArray[np.float32]:
        """Start anew and feed the prompt."""
        return self._feed(self.jamba, self.embeds[:, : self.embeds.shape[1] - self.room], None)

    def step(self, index: int) -> NDArray[np.float32]:
        """Feed one more position."""
        at = self.embeds.shape[1] - self.room + index
        return self._feed(self.stepper, self.embeds[:, at : at + 1], self.cache)


def measure(contestant: Contestant, steps: int) -> None:
    """Time one prompt and the steps after it; keeps the last logits."""
    begin = time.perf_counter()
    logits = contestant.prefill()
    contestant.prefill_s.append(time.perf_counter() - begin)
    for index in range(steps):
        begin = time.perf_counter()
        logits = contestant.step(index)
        contestant.step_s.append(time.perf_counter() - begin)
    contestant.logits = logits


def prepare(
    folder: Path, embeds: NDArray[np.float32], steps: int, rows: Sequence[str]
) -> dict[str, Contestant]:
    """Load a checkpoint once for each row."""
    export_bundle(folder / "model", folder / "bundle", dtype="float32", stages=["decoder"])
    jamba: Any = jamba_from_reference(load_model(folder / "model"))

    def bundle(kernels: Kernels) -> OnnxContestant:
        return OnnxContestant(folder / "bundle", kernels, embeds, steps)

    def compiled() -> JambaContestant:
        return JambaContestant(jamba, embeds, steps, step_with=torch.compile(jamba))

    make: dict[str, Callable[[], OnnxContestant | JambaContestant]] = {
        "ours": lambda: bundle("fast"),
        "bodies": lambda: bundle("onnx"),
        "transformers": lambda: JambaContestant(jamba, embeds, steps),
        "compiled": compiled,
        "bfloat16": lambda: JambaContestant(copy.deepcopy(jamba).bfloat16(), embeds, steps),
    }
    ways = {name: make[name]() for name in rows}
    return {name: Contestant(way.prefill, way.step) for name, way in ways.items()}


def warm_up(ways: dict[str, Contestant], steps: int) -> dict[str, str]:
    """Run everybody once; takes out whom torch.compile failed, and returns why."""
    failures = {}
    for name, way in list(ways.items()):
        try:
            measure(way, min(steps, _WARM_UP_STEPS))
        except Exception as err:  # its compilers raise whatever they meet
            if name != "compiled":
                raise
            failures[name] = f"{type(err).__name__}: {str(err).strip().partition(chr(10))[0]}"
            del ways[name]
        way.prefill_s.clear()
        way.step_s.clear()
    return failures


def limit_rates(
    config: ModelSpec, limits: MachineLimits, *, prompt: int, dtype: str
) -> dict[str, float]:
    """Return the most tokens a second that the machine allows."""
    weights = count_weights(config, dtype=dtype)
    flops = sum(decoder_flops(config.decoder, tokens=prompt, past=0))
    return {
        "prefill": prompt / (flops / limits.flops_per_s),
        "decode": limits.bytes_per_s / weights.read_per_token,
    }


def table(rates: Rates, differences: dict[str, float], failures: dict[str, str]) -> list[str]:
    """Return the lines for people."""
    lines = [
        f"{'':14}{'prefill: ours x':>16}{'tokens/s':>10}{'decode: ours x':>16}{'tokens/s':>10}{'difference':>12}"
    ]
    for name, rate in rates.items():
        ratios = {kind: rates["ours"][kind] / rate[kind] for kind in rate}
        difference = f"{differences[name]:12.0e}" if name in differences else ""
        lines.append(
            f"{name:14}{ratios['prefill']:16.2f}{rate['prefill']:10.0f}"
            f"{ratios['decode']:16.2f}{rate['decode']:10.1f}{difference}"
        )
    return lines + [f"{name:14}  failed: {reason}" for name, reason in failures.items()]


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parse.add_argument("--preset", default="mini", choices=sorted(PRESETS))
    parse.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parse.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt")
    parse.add_argument("--steps", type=int, default=32, help="tokens decoded after it")
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument(
        "--without", nargs="+", default=(), choices=ROWS[1:2] + ROWS[3:], help="rows left out"
    )
    return parse.parse_args(arguments)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line; returns 1 if decoders disagree."""
    args = parse_options(arguments)
    torch.set_num_threads(args.threads)
    config = PRESETS[args.preset]
    shape = (1, args.prompt + args.steps, config.decoder.hidden_size)
    embeds = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    limits = MachineLimits(product_shapes(config.decoder, args.prompt), threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "model", preset=args.preset, dtype=args.dtype)
        rows = [name for name in ROWS if name not in args.without]
        ways = prepare(Path(folder), embeds, args.steps, rows)
        failures = warm_up(ways, args.steps)
        turns: list[Callable[[], object]] = [
            limits.measure,
            *(partial(measure, way, args.steps) for way in ways.values()),
        ]
        for turn in take_turns(turns, rounds=args.repeats):
            turn()
    rates = {
        name: {
            "prefill": args.prompt / statistics.median(way.prefill_s),
            "decode": 1 / statistics.median(way.step_s),
        }
        for name, way in ways.items()
    }
    truth = ways["transformers"].logits
    differences = {
        name: float(np.abs(way.logits - truth).max() / np.abs(truth).max())
        for name, way in ways.items()
    }
    limit = limit_rates(config, limits, prompt=args.prompt, dtype=args.dtype)
    print("\n".join(table(rates | {"limit": limit}, differences, failures)))
    most = {kind: limit[kind] / rates["transformers"][kind] for kind in limit}
    print(
        f"the limit is {most['prefill']:.1f} times transformers' prefill and {most['decode']:.1f} times its decode: "
        f"{limits.flops_per_s / 1e9:.0f} GFLOP/s, {limits.bytes_per_s / 1e9:.1f} GB/s"
    )
    keys = ("preset", "dtype", "prompt", "steps", "threads", "repeats")
    setting = {key: getattr(args, key) for key in keys}
    machine = {"flops_per_s": limits.flops_per_s, "bytes_per_s": limits.bytes_per_s}
    found = {"relative_difference": differences, "failures": failures, "machine": machine}
    print(json.dumps(setting | {"tokens_per_s": rates | {"limit": limit}} | found))
    return 0 if all(differences.get(name, 0.0) < TOLERANCE for name in JUDGED) else 1


if __name__ == "__main__":
    sys.exit(main())
