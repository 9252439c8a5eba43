"""The stages without carried state: CLIP's tower, the projector, and the embedding table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.models.spec import ModelSpec, VisionSpec
from longllava_trt.plugins_trt.kernels.activations import apply_quick_gelu
from longllava_trt.runtime.backends.kernels.device import DeviceStream
from longllava_trt.runtime.backends.kernels.weights import Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EmbedStage", "KernelsStage", "ProjectorStage", "VisionStage", "make_stage"]


class KernelsStage(ABC):
    """A stage: one tensor in, one out.

    Args:
        spec: Its contract.
        config: The model.
        weights: As `plan_stage` names them.
        stream: Where it runs.
    """

    def __init__(
        self, spec: StageSpec, config: ModelSpec, weights: Weights, stream: DeviceStream
    ) -> None:
        self.spec = spec
        self.config, self.weights, self.stream = config, weights, stream

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run on a tensor on the device, of the contract's shape and dtype; does not wait.

        Uses PyTorch's current stream.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once on arrays of the contract's names, shapes and dtypes.

        Raises:
            ContractError: If an input is not what the stage declares.
        """
        spec = self.spec.inputs[0]
        value = inputs[spec.name]
        spec.check(value.shape, str(value.dtype), dims={}, where=self.spec.name)
        self.check_values(value)
        with self.stream.active():
            result = self.forward(self.stream.to_device(value))
            # what a stage gives besides is a weight: the row that ends a line of tiles
            others = {o.name: self.weights[o.name] for o in self.spec.outputs[1:]}
            found = {self.spec.outputs[0].name: result, **others}
            return {name: self.stream.to_host(tensor) for name, tensor in found.items()}

    def check_values(self, value: NDArray[Any]) -> None:  # noqa: B027 - few stages have any to refuse
        """Refuse what would fail on the device."""


class VisionStage(KernelsStage):
    """CLIP's tower up to the last layer that the feature needs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            x: Pixel values. [num_images, 3, image_size, image_size], float32.

        Returns:
            Patch features. [num_images, num_features, feature_size], of the model's dtype.
        """
        vision, w = self.config.require_vision(), self.weights
        patches = linear(_patch_rows(x.to(w["patches"].dtype), vision), w["patches"])
        first = w["class_embedding"].expand(x.shape[0], 1, -1)
        h = torch.cat([first, patches], dim=1) + w["positions"]
        states = [self._norm(h, "pre_norm")]
        for layer in range(vision.num_run_layers):
            h = self._layer(states[-1], f"layers.{layer}.")
            # only states that become features are kept
            states = [*states, h] if len(vision.feature_states) > 1 else [h]
        last = vision.num_run_layers
        chosen = [states[i - last - 1] for i in vision.feature_states]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return features if vision.keep_class_token else features[:, 1:]

    def _layer(self, x: torch.Tensor, name: str) -> torch.Tensor:
        vision = self.config.require_vision()
        heads = vision.num_heads
        qkv = self._linear(self._norm(x, f"{name}norm1"), f"{name}qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self._linear(y, f"{name}out")
        inner = self._linear(self._norm(x, f"{name}norm2"), f"{name}fc1")
        inner = apply_quick_gelu(inner) if vision.activation == "quick_gelu" else gelu(inner)
        return x + self._linear(inner, f"{name}fc2")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.weights[name], self.weights[f"{name}_bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[name], self.weights[f"{name}_bias"]
        return layer_norm(
            x, weight.shape, weight, bias, self.config.require_vision().layer_norm_eps
        )


class ProjectorStage(KernelsStage):
    """Pooling, and the linear layers behind it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project patch features to embeddings.

        Args:
            x: [num_images, num_features, feature_size], of the model's dtype.

        Returns:
            [num_images, num_image_tokens, hidden_size], of the same dtype.
        """
        spec, w = self.config.require_connector(), self.weights
        if spec.pooling > 1:
            side = self.config.require_vision().patches_per_side // spec.pooling
            grid = x.unflatten(1, (side, spec.pooling, side, spec.pooling))
            x = grid.mean(dim=(2, 4)).flatten(1, 2)
        for layer in range(spec.num_layers):
            x = linear(gelu(x) if layer else x, w[f"fc{layer}"], w.get(f"fc{layer}_bias"))
        return x


class EmbedStage(KernelsStage):
    """Token ids to embeddings."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look up ids [batch, seq_len], int64.

        Returns:
            Embeddings. [batch, seq_len, hidden_size], of the model's dtype.
        """
        return self.weights["embed_tokens"][x]

    def check_values(self, value: NDArray[Any]) -> None:
        """Raise an error for ids [batch, seq_len] that the table does not have.

        On a device they would end the process.
        """
        size = self.config.decoder.vocab_size
        if value.size and not 0 <= value.min() <= value.max() < size:
            raise InputError(
                f"embed: ids must be from 0 to {size - 1}, got {value.min()} to {value.max()}; "
                "use this bundle's tokenizer"
            )


_STAGES: dict[str, type[VisionStage | ProjectorStage | EmbedStage]] = {
    "vision": VisionStage,
    "projector": ProjectorStage,
    "embed": EmbedStage,
}


def make_stage(
    spec: StageSpec, config: ModelSpec, weights: Weights, stream: DeviceStream
) -> KernelsStage:
    """Return the stage for a contract."""
    return _STAGES[spec.name](spec, config, weights, stream)


def _patch_rows(pixels: torch.Tensor, config: VisionSpec) -> torch.Tensor:
    """Cut images into patches, one row of pixels each.

    Args:
        pixels: [num_images, 3, image_size, image_size], float32.
        config: The tower.

    Returns:
        [num_images, num_patches, 3 * patch_size ** 2], float32.
    """
    side, patch = config.patches_per_side, config.patch_size
    grid = pixels.unflatten(2, (side, patch)).unflatten(4, (side, patch))
    rows: torch.Tensor = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return rows
