"""Patch features to image tokens: pooling, then layers in a plain Sequential (spec 4.4, 4.5)."""

from __future__ import annotations

from torch import Tensor, nn

from longllava_trt.models.spec import ConnectorSpec

__all__ = ["build_projector", "pool_patches"]


def pool_patches(features: Tensor, *, patches_per_side: int) -> Tensor:
    """Average each 2x2 block of patches.

    Equals the original's bilinear interpolation to half the size with align_corners=False: at a
    factor of exactly two both are the mean of four.

    Args:
        features: Row-major patches. [num_images, patches_per_side**2, hidden_size], T.
        patches_per_side: Even.

    Returns:
        Row-major pooled tokens. [num_images, patches_per_side**2 / 4, hidden_size], T.
    """
    half = patches_per_side // 2
    blocks = features.unflatten(1, (half, 2, half, 2))
    return blocks.mean(dim=(2, 4)).flatten(1, 2)


def build_projector(spec: ConnectorSpec, width: int, hidden_size: int) -> nn.Sequential:
    """Build linear layers with GELU between them; parameters have even indices, activations odd.

    Args:
        spec: The connector.
        width: Width of the features.
        hidden_size: Width of the decoder.
    """
    modules: list[nn.Module] = [nn.Linear(width, hidden_size, bias=spec.bias)]
    for _ in range(spec.num_layers - 1):
        modules += [nn.GELU(), nn.Linear(hidden_size, hidden_size, bias=spec.bias)]
    return nn.Sequential(*modules)
