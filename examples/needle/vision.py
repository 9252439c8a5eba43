"""The first stage: teach the vision tower to see marks, with a classifier that is thrown away.

LongLLaVA's tower was trained before it as well, and frozen from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from examples.needle.pictures import MARKS
from examples.needle.pools import draw_pool
from examples.needle.schedule import warm_cosine
from longllava_trt.reference.connector import pool_patches
from longllava_trt.reference.model import LongLLaVA

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TowerPhase", "pooled_features", "train_tower"]

Log = Callable[[str], None]

_PER_MARK = 4
_HELD_OUT = (1000, 60)


def pooled_features(model: LongLLaVA, pixels: Tensor) -> Tensor:
    """Return what the projector's MLP reads, a few hundred pictures at a time.

    Returns:
        [num_images, num_image_tokens, width]
    """
    side = model.config.require_vision().patches_per_side
    parts = [model.encode_images(part.float()) for part in pixels.split(256)]
    return pool_patches(torch.cat(parts), patches_per_side=side)


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerPhase:
    """One part of the tower's training."""

    name: str
    steps: int
    """Batches of 128 new pictures."""
    peak: float
    """Highest learning rate."""
    num_hard: int
    """So many pictures of each batch, those with the largest losses, come back in the next. A haystack of a thousand
    needs a tower that errs less than once in a thousand, and new pictures alone teach it that ever more slowly."""


def train_tower(model: LongLLaVA, rng: np.random.Generator, *, phase: TowerPhase, log: Log) -> None:
    """Train the tower on pictures drawn afresh for every step, as much hay as marks.

    Args:
        model: Its tower is changed.
        rng: Source of every picture.
        phase: How long, how fast, and what comes back.
        log: Told of the progress, and of the accuracy on pictures that are not trained on.
    """
    held_out = draw_pool(rng, num_hay=_HELD_OUT[0], num_per_mark=_HELD_OUT[1])
    head = nn.Linear(model.config.require_vision().hidden_size, len(MARKS) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    parameters = [*model.vision.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05, betas=(0.9, 0.98))
    hard_values, hard_labels = held_out.values[:0], held_out.labels[:0]
    for step in range(phase.steps):
        optimizer.param_groups[0]["lr"] = warm_cosine(step, steps=phase.steps, peak=phase.peak)
        new = draw_pool(rng, num_hay=_PER_MARK * len(MARKS), num_per_mark=_PER_MARK)
        values = torch.cat([new.values, hard_values])
        labels = torch.cat([new.labels, hard_labels])
        scores = head(pooled_features(model, values).mean(1))
        losses = F.cross_entropy(scores, labels, reduction="none")
        loss = losses.mean()
        hardest = losses.topk(phase.num_hard).indices
        hard_values, hard_labels = values[hardest], labels[hardest]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == phase.steps:
            with torch.no_grad():
                scores = head(pooled_features(model, held_out.values).mean(1))
            right = (scores.argmax(-1) == held_out.labels).float()
            hay, marked = right[: held_out.num_hay], right[held_out.num_hay :]
            log(
                f"{phase.name} step {step + 1} of {phase.steps}, loss {loss.item():.4f}, "
                f"right: hay {hay.mean():.4f}, marks {marked.mean():.4f}"
            )
