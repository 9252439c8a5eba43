"""Level generation: a prompt with images, from the images to the last token.

Greedy tokens must be identical. The logits behind them are compared on the reference's tokens, so that the rows after
a first difference would still mean something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from longllava_trt.core.parity import FLOAT32_MODEL, ParityRow, compare_logits, compare_tokens
from longllava_trt.models.image_layout import PatchGrid, image_layout
from longllava_trt.models.registry import load_chat
from longllava_trt.reference.generate import assemble_embeds, greedy_tokens
from longllava_trt.reference.image_rows import image_rows
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.prompt import IMAGE_TOKEN_INDEX
from longllava_trt.runtime.inputs.pixels import view_pixels
from longllava_trt.runtime.inputs.processor import load_processor_config
from longllava_trt.runtime.inputs.sources import ImageSource, load_image
from longllava_trt.runtime.model import LongLLaVA as RuntimeLongLLaVA
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from longllava_trt.validation.parity_case import ParityCase, array_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHUNK_SIZE", "GenerationCase", "generation_rows"]

CHUNK_SIZE = 97
"""Prompt positions fed at a time: odd, and fewer than an image takes, so that images are cut."""

_QUERY = "Compare these images. What do they show?"
_SYNTHETIC_SIZES = ((337, 211), (97, 401))
_SYNTHETIC_GRID = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationCase:
    """A prompt, and the reference's answer."""

    query: str
    images: tuple[ImageSource, ...]
    input_ids: tuple[int, ...]
    """With an image's index where an image goes."""
    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    """From which each token was chosen. [tokens, vocab_size]."""
    max_new_tokens: int

    @classmethod
    @torch.no_grad()
    def of(
        cls, subject: ParityCase, *, images: Sequence[Path], seed: int, max_new_tokens: int
    ) -> GenerationCase:
        """Let the reference answer, from images given or synthetic."""
        model = subject.reference
        shown: tuple[ImageSource, ...] = tuple(images)
        if not shown and model.config.vision is not None:
            shown = tuple(_synthetic_images(seed))
        chat = load_chat(subject.bundle)
        prompt = chat.prompt(_QUERY, num_images=len(shown))
        ids = _prompt_ids(prompt, ChatTokenizer(subject.bundle, chat), place=chat.image_placeholder)
        embeds = assemble_embeds(model, ids, _image_embeds(model, subject.bundle, shown))
        answer = list(greedy_tokens(model, embeds, max_new_tokens=max_new_tokens))
        return cls(
            query=_QUERY,
            images=shown,
            input_ids=tuple(ids),
            tokens=tuple(token for token, _ in answer),
            logits=np.stack([array_of(logits) for _, logits in answer]),
            max_new_tokens=max_new_tokens,
        )


def _image_embeds(
    model: LongLLaVA, bundle: Path, shown: Sequence[ImageSource]
) -> Iterator[torch.Tensor]:
    """Yield the embeddings of each image. [num_positions, hidden_size], T."""
    config = model.config
    patches = PatchGrid.of(config.require_vision(), config.require_connector())
    processor = load_processor_config(bundle, aspect_ratio=config.images.aspect_ratio)
    for position, source in enumerate(shown, start=1):
        image = load_image(source, position=position)
        layout = image_layout(config.images, image.size, patches)
        pixels = torch.from_numpy(view_pixels(image, layout, processor))
        yield image_rows(model, pixels, layout, image.size)


def _prompt_ids(prompt: str, tokenizer: ChatTokenizer, *, place: str) -> list[int]:
    """Return a prompt's ids, cut at the places of images, with `IMAGE_TOKEN_INDEX` there."""
    first, *rest = prompt.split(place) if place else [prompt]
    ids = tokenizer.encode(first)
    for text in rest:
        ids += [IMAGE_TOKEN_INDEX, *tokenizer.encode(text, after="image")]
    return ids


def generation_rows(case: GenerationCase, runtime: RuntimeLongLLaVA) -> Iterator[ParityRow]:
    """Compare the answer's tokens, then the logits along the reference's tokens."""
    place = f"generation.{runtime.options.kernels}"
    answer = runtime.generate(case.query, case.images, max_new_tokens=case.max_new_tokens)
    yield compare_tokens(f"{place}.tokens", answer.token_ids, case.tokens, logits=case.logits)
    logits = runtime.session().score(case.query, case.tokens, images=case.images)
    yield compare_logits(f"{place}.logits", logits, case.logits, FLOAT32_MODEL)


def _synthetic_images(seed: int) -> Iterator[Image.Image]:
    """Yield smooth random images of odd sizes, one wide and one tall."""
    rng = np.random.default_rng(seed)
    for size in _SYNTHETIC_SIZES:
        coarse = rng.integers(256, size=(_SYNTHETIC_GRID, _SYNTHETIC_GRID, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
