"""The whole model. Its state_dict has exactly the original checkpoint's names (spec 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longllava_trt.models.llava_jamba.config import LongLLaVAConfig
from longllava_trt.reference.cache import HybridCache
from longllava_trt.reference.clip import VisionTransformer
from longllava_trt.reference.connector import build_projector, pool_patches
from longllava_trt.reference.decoder import build_layer
from longllava_trt.reference.norms import RMSNorm
from longllava_trt.reference.operators import Operators, TorchOperators

__all__ = ["DecoderOutput", "LongLLaVA"]


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """What one call of the decoder returns."""

    logits: Tensor
    """Scores of the next token. [batch, 1 or seq_len, vocab_size], float32."""
    cache: HybridCache
    """State to go on from."""
    hidden_states: list[Tensor]
    """Residual stream after each layer. [batch, seq_len, hidden_size] each."""


class _Backbone(nn.Module):
    """Everything under the checkpoint's prefix `model.`."""

    def __init__(self, config: LongLLaVAConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.embed_tokens = nn.Embedding(decoder.vocab_size, decoder.hidden_size)
        self.layers = nn.ModuleList(
            build_layer(decoder, i) for i in range(decoder.num_hidden_layers)
        )
        self.final_layernorm = RMSNorm(decoder.hidden_size, eps=decoder.rms_norm_eps)
        self.mm_projector = build_projector(config)
        self.vision_tower = nn.Module()
        self.vision_tower.vision_tower = nn.Module()
        self.vision_tower.vision_tower.vision_model = VisionTransformer(config.vision)


class LongLLaVA(nn.Module):
    """LongLLaVA: vision tower, projector and hybrid decoder.

    Args:
        config: The model.
        ops: How operators are carried out; plain PyTorch unless export or a test says otherwise.
    """

    def __init__(self, config: LongLLaVAConfig, *, ops: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        self.ops: Operators = ops or TorchOperators()
        self.model = _Backbone(config)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)

    @property
    def vision_model(self) -> VisionTransformer:
        """The vision tower, without the checkpoint's two wrappers."""
        tower = self.get_submodule("model.vision_tower.vision_tower.vision_model")
        assert isinstance(tower, VisionTransformer), "Bug: the backbone builds it"
        return tower

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Run the vision tower: [num_images, 3, image_size, image_size] to [num_images, num_patches, width].

        Pixels are float32 and enter the tower in its own dtype.
        """
        dtype = self.lm_head.weight.dtype
        features, _ = self.vision_model(pixel_values.to(dtype), self.ops)
        return features

    def project(self, image_features: Tensor) -> Tensor:
        """Pool and project: to [num_images, num_image_tokens, hidden_size]."""
        side = self.config.vision.patches_per_side
        embeds: Tensor = self.model.mm_projector(
            pool_patches(image_features, patches_per_side=side)
        )
        return embeds

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look up token embeddings: [batch, seq_len] to [batch, seq_len, hidden_size]."""
        embeds: Tensor = self.model.embed_tokens(input_ids)
        return embeds

    def decode(
        self, inputs_embeds: Tensor, cache: HybridCache, *, all_logits: bool = False
    ) -> DecoderOutput:
        """Run the decoder over one or more tokens, continuing from a cache.

        Args:
            inputs_embeds: [batch, seq_len, hidden_size].
            cache: From `empty_cache`, or of the call before. It is not changed.
            all_logits: Score every position instead of the last alone.
        """
        x, states, hidden_states = inputs_embeds, [], []
        for layer, state in zip(self.model.layers, cache, strict=True):
            x, new_state = layer(x, state, self.ops)
            states.append(new_state)
            hidden_states.append(x)
        if not all_logits:
            x = x[:, -1:]
        logits = self.lm_head(self.model.final_layernorm(x, self.ops))
        return DecoderOutput(logits.float(), tuple(states), hidden_states)

    @classmethod
    def on_meta(cls, config: LongLLaVAConfig) -> LongLLaVA:
        """Build the model without storage, to count or to load into."""
        with torch.device("meta"):
            return cls(config)
