"""Train the needle checkpoint: `python -m examples.needle.train OUT`, on one thread of a CPU.

First the vision tower; then, with it frozen and its features of a fixed pool of pictures kept, projector and decoder,
on haystacks that grow. Every stage draws its random numbers from the seed and its own place, and leaves a file in
OUT.stages; a stage whose file is there is not trained again, so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from examples.needle.checkpoint_writer import write_tokenizer, write_trained
from examples.needle.curriculum import Phase, train_decoder
from examples.needle.geometry import CONFIG
from examples.needle.operators import TrainingOperators
from examples.needle.pools import Pool, draw_pool
from examples.needle.task import Stream, generator
from examples.needle.vision import TowerPhase, pooled_features, train_tower
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.models.tensors import tensor_names
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.synthetic.weights import draw_tensor
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

__all__ = ["PHASES", "TOWER_PHASES", "new_model", "train"]

TOWER_PHASES = (
    TowerPhase(name="tower", steps=4500, peak=2e-3, num_hard=0),
    TowerPhase(name="tower-hard", steps=2500, peak=1e-3, num_hard=64),
)
"""First all pictures alike, then the hard ones more often."""

PHASES = (
    Phase(name="few", steps=300, max_images=8, positions=2000, peak=2e-3),
    Phase(name="dozens", steps=300, max_images=64, positions=3000, peak=1.5e-3),
    Phase(name="hundreds", steps=200, max_images=300, positions=6000, peak=1e-3),
    Phase(name="thousand", steps=200, max_images=1100, positions=12500, peak=7e-4),
)
"""The curriculum; its last phase goes beyond a thousand, so that a thousand is not the edge."""

_POOL = {"num_hay": 16_000, "num_per_mark": 1000}
"""Pictures whose features the decoder is trained on."""

Log = Callable[[str], None]


def new_model(seed: int) -> LongLLaVA:
    """Build the model with the random weights of a synthetic checkpoint."""
    model = LongLLaVA(CONFIG, ops=TrainingOperators())
    names = tensor_names(CONFIG)
    model.load_state_dict(
        {
            path: torch.from_numpy(
                np.asarray(draw_tensor(path, shape, name=names[path], seed=seed))
            )
            for path, shape in parameter_shapes(CONFIG).items()
        }
    )
    return model


def train(out: Path, *, seed: int, log: Log) -> None:
    """Train every stage that is not done yet, then write the checkpoint.

    Args:
        out: Folder for the checkpoint; the stages' files go beside it.
        seed: Of everything random.
        log: Told of the progress.
    """
    stages = out.with_name(f"{out.name}.stages")
    write_tokenizer(stages, CONFIG.decoder.vocab_size)
    model = new_model(seed)
    places = iter(range(len(TOWER_PHASES) + 1 + len(PHASES)))
    for tower_phase in TOWER_PHASES:
        rng = generator(Stream.TRAINING, seed, next(places))
        run = functools.partial(train_tower, model, rng, phase=tower_phase, log=log)
        _run_once(run, model, stages / f"{tower_phase.name}.pt")
    pixels = draw_pool(generator(Stream.TRAINING, seed, next(places)), **_POOL)
    with torch.no_grad():
        features = Pool(pooled_features(model, pixels.values), pixels.num_hay)
    log(f"features of {len(features.values)} pictures kept")
    tokenizer = ChatTokenizer(stages)
    for phase in PHASES:
        rng = generator(Stream.TRAINING, seed, next(places))
        run = functools.partial(
            train_decoder, model, features, tokenizer, rng, phase=phase, log=log
        )
        _run_once(run, model, stages / f"{phase.name}.pt")
    write_trained(out, model)
    log(f"checkpoint written to {out}")


def _run_once(stage: Callable[[], None], model: LongLLaVA, file: Path) -> None:
    """Run a stage and keep what it made of the model, or take what it made before."""
    if file.exists():
        model.load_state_dict(torch.load(file))
        return
    stage()
    torch.save(model.state_dict(), file)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    args = parser.parse_args()
    # sums depend on their order: one thread gives the same weights on the same kind of machine
    torch.set_num_threads(1)
    begin = time.monotonic()
    train(
        args.out,
        seed=args.seed,
        log=lambda text: print(f"{time.monotonic() - begin:6.0f} s  {text}", flush=True),
    )


if __name__ == "__main__":
    main()
