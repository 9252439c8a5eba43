"""Modules that are traced: the reference's methods between a contract's inputs and outputs.

A stage returns its outputs and also the residual stream after each layer, so that these values get
stable names in the graph; `trace` removes them from the outputs again. Shapes and dtypes are those
of the stages' contracts.
"""

from __future__ import annotations

from torch import Tensor, nn

from longllava_trt.export.operators import OnnxOperators
from longllava_trt.reference.cache import AttentionState, HybridCache, MambaState
from longllava_trt.reference.model import LongLLaVA

__all__ = ["STAGE_MODULES"]

Outputs = tuple[Tensor, ...]


class _Stage(nn.Module):
    def __init__(self, model: LongLLaVA) -> None:
        super().__init__()
        # the only child, so that parameter names are the model's paths behind one fixed prefix
        self.model = model


class VisionStage(_Stage):
    """`pixel_values` to `image_features`."""

    def forward(self, pixel_values: Tensor) -> Outputs:
        """Trace the vision tower in its own dtype."""
        pixels = pixel_values.to(self.model.dtype)
        features, hidden_states = self.model.vision(pixels, OnnxOperators())
        return (features, *hidden_states)


class ProjectorStage(_Stage):
    """`image_features` to `image_embeds`, and `image_newline` where the model has one."""

    def forward(self, image_features: Tensor) -> Outputs:
        """Trace pooling and MLP, and the row that ends a line of tiles, which is a weight."""
        newline = [self.model.image_newline.clone()] if self.model.config.images.has_newline else []
        return (self.model.project(image_features), *newline)


class EmbedStage(_Stage):
    """`input_ids` to `inputs_embeds`."""

    def forward(self, input_ids: Tensor) -> Outputs:
        """Trace the lookup."""
        return (self.model.embed(input_ids),)


class DecoderStage(_Stage):
    """`inputs_embeds`, `past_len` and carried state to `logits` and carried state."""

    def forward(self, inputs_embeds: Tensor, past_len: Tensor, *past: Tensor) -> Outputs:
        """Trace one call of the decoder; `past` has two tensors for each layer, in order."""
        self.model.ops = OnnxOperators(past_len)
        output = self.model.decode(inputs_embeds, self._cache(past))
        present = [tensor for state in output.cache for tensor in state]
        return (output.logits, *present, *output.hidden_states)

    def _cache(self, past: tuple[Tensor, ...]) -> HybridCache:
        kinds = self.model.config.decoder.layer_kinds
        pairs = zip(past[::2], past[1::2], strict=True)
        return tuple(
            (AttentionState if kind == "attention" else MambaState)(*pair)
            for kind, pair in zip(kinds, pairs, strict=True)
        )


STAGE_MODULES: dict[str, type[_Stage]] = {
    "vision": VisionStage,
    "projector": ProjectorStage,
    "embed": EmbedStage,
    "decoder": DecoderStage,
}
"""By stage name."""
