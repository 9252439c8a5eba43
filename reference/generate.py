"""Embedding assembly and greedy decoding of one prompt, as in the original (spec 5.7, 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from longllava_trt.reference.cache import HybridCache, empty_cache
from longllava_trt.reference.model import LongLLaVA

__all__ = ["IMAGE_TOKEN_INDEX", "assemble_embeds", "greedy_tokens", "prefill"]

IMAGE_TOKEN_INDEX = -200


def assemble_embeds(
    model: LongLLaVA, input_ids: Sequence[int], image_embeds: Iterable[Tensor]
) -> Tensor:
    """Embed a prompt, with the k-th image's tokens at the k-th image index.

    Args:
        model: The model.
        input_ids: Token ids, with `IMAGE_TOKEN_INDEX` for each image.
        image_embeds: Of each image. [num_positions, hidden_size], T.

    Returns:
        Embeddings. [1, length, hidden_size], T.
    """
    pieces, text, images = [], [], iter(image_embeds)
    for token in [*input_ids, None]:
        if token is not None and token != IMAGE_TOKEN_INDEX:
            text.append(token)
            continue
        if text:
            pieces.append(model.embed(torch.tensor(text)))
            text = []
        if token == IMAGE_TOKEN_INDEX:
            pieces.append(next(images))
    return torch.cat(pieces)[None]


def prefill(
    model: LongLLaVA, inputs_embeds: Tensor, *, chunk: int | None = None
) -> tuple[Tensor, HybridCache]:
    """Feed a prompt, whole or in chunks.

    Args:
        model: The model.
        inputs_embeds: [batch, length, hidden_size], T.
        chunk: Positions fed at a time; by default all.

    Returns:
        Logits of the last position [batch, 1, vocab_size], float32, and the cache.
    """
    cache = empty_cache(
        model.config.decoder, batch=inputs_embeds.shape[0], dtype=inputs_embeds.dtype
    )
    for piece in inputs_embeds.split(chunk or inputs_embeds.shape[1], dim=1):
        output = model.decode(piece, cache)
        cache = output.cache
    return output.logits, cache


@torch.no_grad()
def greedy_tokens(
    model: LongLLaVA, inputs_embeds: Tensor, *, max_new_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield each next token of the first row, and its logits [vocab_size], float32.

    A token that ends an answer is forbidden as the first token. Later it ends the stream and is not
    yielded.

    Args:
        model: The model.
        inputs_embeds: The prompt. [1, length, hidden_size], T.
        max_new_tokens: Largest number of tokens.
    """
    eos = list(model.config.eos_token_ids)
    logits, cache = prefill(model, inputs_embeds)
    for step in range(max_new_tokens):
        scores = logits[0, -1].clone()
        if step == 0:
            scores[eos] = float("-inf")
        token = int(scores.argmax())
        if token in eos:
            return
        yield token, logits[0, -1]
        output = model.decode(model.embed(torch.tensor([[token]])), cache)
        logits, cache = output.logits, output.cache
