"""The decoder on a CPU, beside transformers' Jamba with the same weights and threads, in one run.

    python -m benchmarks.decoder [--preset mini]

Prefill of a prompt in one call and greedy decoding after it, batch 1, float32. Prints tokens a second (median) and our
ratio to each peer, then one JSON line; exit status 1 if the decoders disagree.

    ours            ONNX Runtime with the fast kernels
    bodies          ONNX Runtime with the file's own function bodies, nothing registered
    transformers    JambaForCausalLM, eager, with its own cache
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.bundle import export_bundle
from longllava_trt.manifest import Manifest
from reference.checkpoint import load_model
from reference.synthetic import PRESETS, write_checkpoint
from reference.transformers_jamba import jamba_from_reference
from runtime.decoder import Decoder
from runtime.onnxrt import Kernels, OnnxSession

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Contestant:
    """One way to run the decoder; logits are of the position after what was fed."""

    prefill: Callable[[], NDArray[np.float32]]
    step: Callable[[int], NDArray[np.float32]]
    prefill_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)


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
    """transformers' Jamba."""

    def __init__(self, jamba: Any, embeds: NDArray[np.float32], room: int) -> None:
        self.jamba, self.embeds, self.room = jamba, torch.from_numpy(embeds), room

    def _feed(self, embeds: torch.Tensor, cache: Any) -> NDArray[np.float32]:
        output = self.jamba(
            inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        self.cache = output.past_key_values
        logits: NDArray[np.float32] = output.logits[0, -1].numpy()
        return logits

    def prefill(self) -> NDArray[np.float32]:
        """Start anew and feed the prompt."""
        return self._feed(self.embeds[:, : self.embeds.shape[1] - self.room], None)

    def step(self, index: int) -> NDArray[np.float32]:
        """Feed one more position."""
        at = self.embeds.shape[1] - self.room + index
        return self._feed(self.embeds[:, at : at + 1], self.cache)


def measure(contestant: Contestant, steps: int) -> NDArray[np.float32]:
    """Time one prompt and the steps after it; returns the last logits."""
    begin = time.perf_counter()
    logits = contestant.prefill()
    contestant.prefill_s.append(time.perf_counter() - begin)
    for index in range(steps):
        begin = time.perf_counter()
        logits = contestant.step(index)
        contestant.step_s.append(time.perf_counter() - begin)
    return logits


def prepare(
    folder: Path, preset: str, embeds_shape: tuple[int, int], steps: int
) -> dict[str, Contestant]:
    """Make a checkpoint and load it three times."""
    write_checkpoint(folder / "model", preset=preset)
    export_bundle(folder / "model", folder / "bundle", stages=["decoder"])
    shape = (1, *embeds_shape)
    embeds = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    made: dict[str, OnnxContestant | JambaContestant] = {
        "ours": OnnxContestant(folder / "bundle", "fast", embeds, steps),
        "bodies": OnnxContestant(folder / "bundle", "bodies", embeds, steps),
        "transformers": JambaContestant(
            jamba_from_reference(load_model(folder / "model")), embeds, steps
        ),
    }
    return {name: Contestant(way.prefill, way.step) for name, way in made.items()}


@torch.no_grad()
def main() -> int:
    """Measure, print the table and the JSON line."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parse.add_argument("--preset", default="mini", choices=sorted(PRESETS))
    parse.add_argument("--prompt", type=int, default=1024, help="tokens of the prompt")
    parse.add_argument("--steps", type=int, default=32, help="tokens decoded after it")
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--repeats", type=int, default=3)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    hidden = PRESETS[args.preset].decoder.hidden_size
    logits = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = prepare(Path(folder), args.preset, (args.prompt + args.steps, hidden), args.steps)
        for way in ways.values():
            measure(way, 2)
            way.prefill_s.clear()
            way.step_s.clear()
        # round by round, so that a busy moment of the machine hits all alike
        for _ in range(args.repeats):
            for name, way in ways.items():
                logits[name] = measure(way, args.steps)
    rates = {
        name: {
            "prefill": args.prompt / statistics.median(way.prefill_s),
            "decode": 1 / statistics.median(way.step_s),
        }
        for name, way in ways.items()
    }
    worst = max(
        float(np.abs(logits["transformers"] - other).max() / np.abs(other).max())
        for other in logits.values()
    )
    print(f"{'':14}{'prefill: ours x':>16}{'tokens/s':>10}{'decode: ours x':>16}{'tokens/s':>10}")
    for name, rate in rates.items():
        ratios = {kind: rates["ours"][kind] / rate[kind] for kind in rate}
        print(
            f"{name:14}{ratios['prefill']:16.2f}{rate['prefill']:10.0f}"
            f"{ratios['decode']:16.2f}{rate['decode']:10.1f}"
        )
    setting = {
        key: getattr(args, key) for key in ("preset", "prompt", "steps", "threads", "repeats")
    }
    print(json.dumps(setting | {"tokens_per_s": rates, "relative_difference": worst}))
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
