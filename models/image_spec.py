"""The image side of a model as data: vision tower, connector, and how a picture becomes rows.

Widths are numbers of elements, counts are positive; each class checks its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.spec_checks import require_divisible, require_positive

__all__ = ["ConnectorSpec", "ImageSpec", "VisionSpec"]

_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """CLIP vision tower. The defaults are ViT-L/14 at 336 pixels, as in most published models."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    activation: str = "quick_gelu"
    """`quick_gelu`: x · sigmoid(1.702 x), OpenAI's; or `gelu`, the exact one."""
    layer_norm_eps: float = 1e-5
    feature_layers: tuple[int, ...] = (-2,)
    """Hidden states that are the feature, joined along their width: 0 is the embeddings, k the output
    of layer k; negative numbers count from the last."""
    keep_class_token: bool = False
    """Whether the feature has the class token before the patches."""

    def __post_init__(self) -> None:
        require_positive(self, "vision tower")
        require_divisible(self.hidden_size, self.num_heads, "vision tower")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"vision tower: image_size {self.image_size} must hold a patch of {self.patch_size} pixels"
            )
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"vision tower: activation must be {' or '.join(_ACTIVATIONS)}, got '{self.activation}'"
            )
        states = self.num_layers + 1
        if not self.feature_layers or any(not -states <= i < states for i in self.feature_layers):
            raise ConfigError(
                f"vision tower: feature layers must be among {states} hidden states, got {self.feature_layers}"
            )

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the image; 24 for ViT-L/14 at 336 pixels."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.patches_per_side**2

    @property
    def num_features(self) -> int:
        """Rows of the feature: one for each patch, and the class token if it is kept."""
        return self.num_patches + self.keep_class_token

    @property
    def feature_size(self) -> int:
        """Width of the feature."""
        return self.hidden_size * len(self.feature_layers)

    @property
    def feature_states(self) -> tuple[int, ...]:
        """Indices of the hidden states that are the feature; the embeddings have index 0."""
        return tuple(i % (self.num_layers + 1) for i in self.feature_layers)

    @property
    def num_run_layers(self) -> int:
        """Number of encoder layers that run: up to the last one that the feature needs."""
        return max(self.feature_states)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSpec:
    """Patch features to decoder positions: pooling, then linear layers with GELU between them."""

    num_layers: int = 2
    pooling: int = 1
    """Side of the square of patches that are averaged into one; 1 for none."""
    bias: bool = True

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.pooling not in {1, 2}:
            raise ConfigError(
                f"connector: layers must be positive and pooling 1 or 2, got {self.num_layers} and {self.pooling}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """How a picture becomes rows for the decoder: its tiles, the order of their rows, markers."""

    aspect_ratio: Literal["square", "pad", "anyres"] = "square"
    """`square`: what the image processor says, a resize and a centre crop. `pad`: padded to a square
    with the mean colour, then as `square`. `anyres`: an overview and tiles of the tower's size."""
    pinpoints: tuple[tuple[int, int], ...] = ()
    """Width and height of each canvas that `anyres` chooses from, in the checkpoint's order: the
    first of equals wins. Multiples of the tower's image size."""
    merge: Literal["flat", "spatial", "spatial_unpad"] = "flat"
    """`flat`: rows of the overview, then of each tile. `spatial`: tiles as one map, row by row.
    `spatial_unpad`: the same without the canvas's border, and with a newline after each row."""
    use_start_end: bool = False
    """Whether an image stands between the tokens `<im_start>` and `<im_end>`."""
    token_id: int | None = None
    """Id that stands for an image in transformers' prompts; None for the original's formats."""

    def __post_init__(self) -> None:
        if (self.aspect_ratio == "anyres") != bool(self.pinpoints):
            raise ConfigError(
                f"images: anyres and pinpoints come together, got '{self.aspect_ratio}' and "
                f"{len(self.pinpoints)} pinpoints"
            )
        if any(side < 1 for pinpoint in self.pinpoints for side in pinpoint):
            raise ConfigError(f"images: pinpoints must be positive, got {self.pinpoints}")

    @property
    def has_newline(self) -> bool:
        """Whether the checkpoint has the embedding `image_newline` [hidden_size]."""
        return self.merge == "spatial_unpad"
