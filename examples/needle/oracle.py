"""The reference's way to answer the same questions. Needs PyTorch, though importing this module does not.

Pixels are the runtime's; everything else, ids included, is the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from examples.needle.evaluate import MAX_NEW_TOKENS, Answerer, Said
from longllava_trt.runtime.inputs.pixels import preprocess_batch
from longllava_trt.runtime.inputs.processor import load_processor_config
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from longllava_trt.reference.model import LongLLaVA

__all__ = ["ask_reference"]

_CHUNK_SIZE = 1024
"""Positions decoded at a time: scores over a whole long prompt would not fit. Chunks equal the whole."""
_VISION_BATCH = 64


def ask_reference(checkpoint: Path) -> Answerer:
    """Load a checkpoint in float32 and return its way to answer, greedily.

    Raises:
        ImportError: If PyTorch is not installed.
        ConfigError: If the folder is no checkpoint that we can honour.
        CheckpointError: If its tensors are not those that its configuration describes.
    """
    import torch

    from longllava_trt.reference.checkpoint import load_model
    from longllava_trt.reference.generate import assemble_embeds
    from longllava_trt.reference.prompt import build_prompt, tokenize_prompt, wrap_images

    model = load_model(checkpoint)
    tokenizer, processor = ChatTokenizer(checkpoint), load_processor_config(checkpoint)

    @torch.no_grad()
    def ask(question: str, pictures: Sequence[Image.Image]) -> Said:
        prompt = build_prompt(wrap_images(question, num_images=len(pictures)))
        pixels = torch.from_numpy(preprocess_batch(pictures, processor))
        images = torch.cat(
            [model.project(model.encode_images(part)) for part in pixels.split(_VISION_BATCH)]
        )
        embeds = assemble_embeds(model, tokenize_prompt(prompt, tokenizer), images)
        tokens = _greedy_tokens(model, embeds)
        return Said(tokenizer.decode(tokens).strip(), tuple(tokens), embeds.shape[1])

    return ask


def _greedy_tokens(model: LongLLaVA, embeds: Tensor) -> list[int]:
    """Decode as `longllava_trt.reference.generate.greedy_tokens` does, behind a prompt fed in chunks."""
    import torch

    from longllava_trt.reference.generate import prefill

    eos = list(model.config.eos_token_ids)
    logits, cache = prefill(model, embeds, chunk=_CHUNK_SIZE)
    tokens: list[int] = []
    while len(tokens) < MAX_NEW_TOKENS:
        scores = logits[0, -1].clone()
        if not tokens:
            scores[eos] = float("-inf")
        token = int(scores.argmax())
        if token in eos:
            break
        tokens.append(token)
        output = model.decode(model.embed(torch.tensor([[token]])), cache)
        logits, cache = output.logits, output.cache
    return tokens
