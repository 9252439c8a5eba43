"""Training sequences: many pictures, one of them marked, and a few turns of question and answer about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - PyTorch's own idiom

from examples.needle.geometry import CONFIG
from examples.needle.pictures import MARKS, Mark
from examples.needle.pools import Pool
from examples.needle.task import NOTHING, QUESTIONS
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.prompt import (
    IMAGE_TOKEN_INDEX,
    build_prompt,
    tokenize_prompt,
    wrap_images,
)
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Batch", "answer_loss", "answer_to", "draw_batch"]

_IGNORED = -100
_SEPARATOR = "\n"
_NOTHING_SHARE = 0.1

Turn = tuple[str, str]
"""A user's words, pictures included, and the answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of equally many pictures."""

    input_ids: Tensor
    """With `IMAGE_TOKEN_INDEX` at every position of a picture; short rows end in padding. [batch, seq_len]."""
    targets: Tensor
    """Next token, at the positions from which an answer is given; elsewhere -100. [batch, seq_len]."""
    pictures: Tensor
    """Rows of the pool, in order. [batch, num_images]."""


def answer_to(kind: str, mark: Mark | None) -> str:
    """Return the right answer to a kind of question."""
    if mark is None:
        return NOTHING
    return {"mark": mark.text, "colour": mark.colour, "shape": mark.shape}[kind]


def draw_batch(
    rng: np.random.Generator,
    pool: Pool,
    tokenizer: ChatTokenizer,
    *,
    num_images: int,
    num_sequences: int,
) -> Batch:
    """Draw sequences, each with one turn for every kind of question, in any order.

    In most, one picture anywhere is marked. In half of them all pictures come before the first question; in the others
    each turn brings some, and the answer is about those shown so far.
    """
    rows, pictures = [], []
    for _ in range(num_sequences):
        mark = None if rng.random() < _NOTHING_SHARE else int(rng.integers(len(MARKS)))
        position = int(rng.integers(num_images))
        shown = pool.draw_hay(rng, num_images)
        if mark is not None:
            shown[position] = pool.draw_marked(rng, mark)
        pictures.append(shown)
        rows.append(_row(_turns(rng, num_images, position, mark), tokenizer, pool.values.shape[1]))
    length = max(len(ids) for ids, _ in rows)
    ids, targets = (
        torch.stack([F.pad(torch.tensor(r), (0, length - len(r)), value=fill) for r in part])
        for part, fill in zip(zip(*rows, strict=True), (0, _IGNORED), strict=True)
    )
    return Batch(ids, targets, torch.tensor(pictures))


def _turns(
    rng: np.random.Generator, num_images: int, position: int, mark: int | None
) -> list[Turn]:
    """Deal the pictures out to the turns and work out the answers."""
    kinds = [str(kind) for kind in rng.permutation(list(QUESTIONS))]
    seen = [num_images] * len(kinds)
    if rng.random() < 0.5:
        seen[:-1] = sorted(int(cut) for cut in rng.integers(num_images + 1, size=len(kinds) - 1))
    turns = []
    for kind, before, now in zip(kinds, [0, *seen], seen, strict=False):
        visible = MARKS[mark] if mark is not None and position < now else None
        text = wrap_images(QUESTIONS[kind], num_images=now - before)
        turns.append((text, answer_to(kind, visible)))
    return turns


def _row(
    turns: Sequence[Turn], tokenizer: ChatTokenizer, num_image_tokens: int
) -> tuple[list[int], list[int]]:
    """Return the input ids and targets of one conversation."""
    ids: list[int] = []
    targets: list[int] = []
    for turn, (question, answer) in enumerate(turns):
        # as the runtime goes on after an answer: a separator first
        opening = build_prompt(question) if turn == 0 else _SEPARATOR + build_prompt(question)
        for token in tokenize_prompt(opening, tokenizer):
            repeated = [token] * (num_image_tokens if token == IMAGE_TOKEN_INDEX else 1)
            ids += repeated
            targets += [_IGNORED] * len(repeated)
        answer_ids = tokenizer.encode(answer)
        # the last position of the prompt gives the first token of the answer, and so on to the end
        targets[-1:] = [*answer_ids, CONFIG.eos_token_ids[0]]
        ids += answer_ids
    return ids, targets


def answer_loss(model: LongLLaVA, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the answers, and which of their tokens were right.

    Args:
        model: With operators that train.
        features: Pooled features of the pool's pictures. [pictures, num_image_tokens, width].
        batch: Sequences.

    Returns:
        loss: Mean over the answers' tokens.
        right: One flag a token. [tokens], bool.
    """
    images = model.projector(features[batch.pictures.flatten()])
    is_image = batch.input_ids == IMAGE_TOKEN_INDEX
    embeds = model.embed(batch.input_ids.clamp(min=0))
    embeds = embeds.masked_scatter(is_image[..., None], images)
    hidden = embeds
    cache = empty_cache(model.config.decoder, batch=len(embeds))
    for layer, state in zip(model.layers, cache, strict=True):
        hidden, _ = layer(hidden, state, model.ops)
    asked = batch.targets != _IGNORED
    scores = model.score(hidden[asked])
    targets = batch.targets[asked]
    return F.cross_entropy(scores, targets), scores.argmax(-1) == targets
