"""From patch features to image tokens: 2x2 pooling; the MLP behind it is a plain Sequential (spec 4.4, 4.5)."""

from __future__ import annotations

from torch import Tensor, nn

from longllava_trt.models.llava_jamba.config import LongLLaVAConfig

__all__ = ["build_projector", "pool_patches"]


def pool_patches(features: Tensor, *, patches_per_side: int) -> Tensor:
    """Average each 2x2 block of patches.

    Equals bilinear interpolation to half the size with align_corners=False, which is what the original
    calls; at an exact factor of two both are the mean of four.

    Args:
        features: Row-major patches. [num_images, patches_per_side**2, hidden_size].
        patches_per_side: Even.

    Returns:
        Row-major pooled tokens. [num_images, patches_per_side**2 / 4, hidden_size].
    """
    half = patches_per_side // 2
    blocks = features.unflatten(1, (half, 2, half, 2))
    return blocks.mean(dim=(2, 4)).flatten(1, 2)


def build_projector(config: LongLLaVAConfig) -> nn.Sequential:
    """Build the two-layer MLP; its parameters are numbered 0 and 2 as in the checkpoint."""
    hidden = config.decoder.hidden_size
    return nn.Sequential(
        nn.Linear(config.vision.hidden_size, hidden), nn.GELU(), nn.Linear(hidden, hidden)
    )
