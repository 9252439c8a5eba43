"""The second stage: projector and decoder learn to answer, over haystacks that grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from examples.needle.haystacks import answer_loss, draw_batch
from examples.needle.operators import TrainingOperators
from examples.needle.pools import Pool
from examples.needle.schedule import warm_cosine
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

__all__ = ["Phase", "train_decoder"]

Log = Callable[[str], None]

_BALANCE_WEIGHT = 0.01
_WEIGHT_DECAY = 0.02
_LARGEST_BATCH = 32
_LOG_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One part of the curriculum."""

    name: str
    steps: int
    max_images: int
    """Numbers of pictures are log-uniform from 1 to this."""
    positions: int
    """About as many positions make a batch; one sequence may be longer."""
    peak: float
    """Highest learning rate."""


def train_decoder(
    model: LongLLaVA,
    features: Pool,
    tokenizer: ChatTokenizer,
    rng: np.random.Generator,
    *,
    phase: Phase,
    log: Log,
) -> None:
    """Train everything but the vision tower.

    Args:
        model: Built with `TrainingOperators`.
        features: Pooled features of the pictures to choose from.
        tokenizer: Of the checkpoint.
        rng: Source of the sequences.
        phase: How long, how many pictures, how fast.
        log: Told of the progress.
    """
    ops = model.ops
    assert isinstance(ops, TrainingOperators), "Bug: training needs operators with gradients"
    model.requires_grad_(True)
    model.vision.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(_parameter_groups(model), betas=(0.9, 0.98))
    seen: list[tuple[int, float, float]] = []
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = warm_cosine(step, steps=phase.steps, peak=phase.peak)
        num_images = int(math.exp(rng.uniform(0, math.log(phase.max_images + 1))))
        batch = draw_batch(
            rng, features, tokenizer, num_images=num_images, num_sequences=_batch(phase, num_images)
        )
        ops.balance.clear()
        loss, right = answer_loss(model, features.values, batch)
        optimizer.zero_grad()
        (loss + _BALANCE_WEIGHT * torch.stack(ops.balance).mean()).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        seen.append((num_images, loss.item(), right.float().mean().item()))
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == phase.steps:
            log(f"{phase.name} step {step + 1} of {phase.steps}, {_summary(seen, phase)}")
            seen.clear()


def _batch(phase: Phase, num_images: int) -> int:
    """Return the number of sequences of N pictures that fill a batch."""
    return max(1, min(_LARGEST_BATCH, phase.positions // (11 * num_images + 60)))


def _parameter_groups(model: LongLLaVA) -> list[dict[str, list[Tensor] | float]]:
    """Let matrices decay, and nothing else."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name for name, p in trained.items() if p.ndim != 2 or name.endswith("A_log")}
    return [
        {"params": [p for n, p in trained.items() if n not in kept], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for n, p in trained.items() if n in kept], "weight_decay": 0.0},
    ]


def _summary(seen: list[tuple[int, float, float]], phase: Phase) -> str:
    images, losses, right = (np.array(column) for column in zip(*seen, strict=True))
    text = f"loss {losses.mean():.4f}, tokens right {right.mean():.4f}"
    many = images >= phase.max_images / 3
    if many.any():
        text += f"; from {math.ceil(phase.max_images / 3)} images {losses[many].mean():.4f}, {right[many].mean():.4f}"
    return text
