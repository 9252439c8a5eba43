"""Pictures to train on, drawn once: haystack pictures first, then marked ones, mark by mark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from examples.needle.geometry import VISION
from examples.needle.pictures import MARKS, draw_hay, draw_marked
from longllava_trt.runtime.inputs.pixels import preprocess
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig

__all__ = ["PROCESSOR", "Pool", "draw_pool"]

PROCESSOR = ImageProcessorConfig(
    image_size=VISION.image_size,
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
"""As longllava_trt.reference.synthetic.config writes it."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Pictures, or what the vision tower made of them."""

    values: Tensor
    """First the hay, then as many pictures of each mark. [pictures, ...]."""
    num_hay: int

    @property
    def labels(self) -> Tensor:
        """Place of each picture's mark in `MARKS`; one more than the last for hay."""
        per_mark = (len(self.values) - self.num_hay) // len(MARKS)
        hay = torch.full((self.num_hay,), len(MARKS))
        return torch.cat([hay, torch.arange(len(MARKS)).repeat_interleave(per_mark)])

    def draw_hay(self, rng: np.random.Generator, count: int) -> list[int]:
        """Choose haystack pictures."""
        return [int(row) for row in rng.integers(self.num_hay, size=count)]

    def draw_marked(self, rng: np.random.Generator, mark: int) -> int:
        """Choose a picture of a mark."""
        per_mark = (len(self.values) - self.num_hay) // len(MARKS)
        return int(self.num_hay + mark * per_mark + rng.integers(per_mark))


def draw_pool(rng: np.random.Generator, *, num_hay: int, num_per_mark: int) -> Pool:
    """Draw and preprocess pictures.

    Returns:
        Pixel values. [pictures, 3, image_size, image_size], float16.
    """
    pictures = [draw_hay(rng) for _ in range(num_hay)]
    pictures += [draw_marked(rng, mark) for mark in MARKS for _ in range(num_per_mark)]
    pixels = np.stack([preprocess(p, PROCESSOR).astype(np.float16) for p in pictures])
    return Pool(torch.from_numpy(pixels), num_hay)
