"""The whole model, built from its specification; state_dict paths as in `models/parameters.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from longllava_trt.models.parameters import EMBEDDING, parameter_shapes, unused_parameters
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import tensor_names
from longllava_trt.reference.cache import HybridCache
from longllava_trt.reference.clip import VisionTransformer
from longllava_trt.reference.connector import build_projector, pool_patches
from longllava_trt.reference.decoder import build_layer
from longllava_trt.reference.norms import RMSNorm
from longllava_trt.reference.operators import Operators, TorchOperators

__all__ = ["DecoderOutput", "LongLLaVA"]


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """Result of one call of the decoder."""

    logits: Tensor
    """Logits of the next token. [batch, 1 or seq_len, vocab_size], float32."""
    cache: HybridCache
    """State to go on from."""
    hidden_states: list[Tensor]
    """Residual stream after each layer. Each [batch, seq_len, hidden_size], T."""


class LongLLaVA(nn.Module):
    """Vision tower, projector and decoder; the decoder alone for a model of text.

    Args:
        config: The model.
        ops: Implementation of the operators; plain PyTorch by default.
    """

    image_newline: nn.Parameter
    """Row that ends each line of an image's map; only where the model has one. [hidden_size], T."""

    def __init__(self, config: ModelSpec, *, ops: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        self.ops: Operators = ops or TorchOperators()
        decoder = config.decoder
        self.embed_tokens = nn.Embedding(decoder.vocab_size, decoder.hidden_size)
        self.layers = nn.ModuleList(build_layer(decoder, i) for i in range(decoder.num_layers))
        self.final_norm = RMSNorm(decoder.hidden_size, eps=decoder.rms_norm_eps)
        if config.vision is not None and config.connector is not None:
            width = config.vision.feature_size
            self.projector = build_projector(config.connector, width, decoder.hidden_size)
            if config.images.has_newline:
                self.image_newline = nn.Parameter(torch.zeros(decoder.hidden_size))
            self.vision = VisionTransformer(config.vision)
        if not decoder.tie_embeddings:
            self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return self.embed_tokens.weight.dtype

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Run the vision tower.

        Args:
            pixel_values: [num_images, 3, image_size, image_size], float32; cast to T.

        Returns:
            Patch features. [num_images, num_features, feature_size], T.
        """
        features, _ = self.vision(pixel_values.to(self.dtype), self.ops)
        return features

    def project(self, image_features: Tensor) -> Tensor:
        """Pool, if the model does, and project.

        Args:
            image_features: [num_images, num_features, feature_size], T.

        Returns:
            [num_images, num_image_tokens, hidden_size], T.
        """
        if self.config.require_connector().pooling == 2:
            side = self.config.require_vision().patches_per_side
            image_features = pool_patches(image_features, patches_per_side=side)
        embeds: Tensor = self.projector(image_features)
        return embeds

    def embed(self, input_ids: Tensor) -> Tensor:
        """Look up ids [batch, seq_len], int64.

        Returns:
            Embeddings. [batch, seq_len, hidden_size], T.
        """
        embeds: Tensor = self.embed_tokens(input_ids)
        return embeds

    def decode(
        self, inputs_embeds: Tensor, cache: HybridCache, *, all_logits: bool = False
    ) -> DecoderOutput:
        """Run the decoder over one or more tokens, starting from a cache.

        Args:
            inputs_embeds: [batch, seq_len, hidden_size], T.
            cache: From `empty_cache` or the call before. It is not changed.
            all_logits: Return logits of every position, not only of the last.
        """
        x, states, hidden_states = inputs_embeds, [], []
        for layer, state in zip(self.layers, cache, strict=True):
            x, new_state = layer(x, state, self.ops)
            states.append(new_state)
            hidden_states.append(x)
        if not all_logits:
            x = x[:, -1:]
        return DecoderOutput(self.score(x).float(), tuple(states), hidden_states)

    def score(self, hidden: Tensor) -> Tensor:
        """Normalise the residual stream [..., hidden_size], T.

        Returns:
            Logits. [..., vocab_size], float32.
        """
        hidden = self.final_norm(hidden, self.ops)
        tied = self.config.decoder.tie_embeddings
        logits: Tensor = (
            F.linear(hidden, self.embed_tokens.weight) if tied else self.lm_head(hidden)
        )
        return logits

    def named_tensors(self) -> dict[str, Tensor]:
        """Return the weights, of their own shapes and dtypes, by a checkpoint's names."""
        names = tensor_names(self.config)
        return {names[path]: value for path, value in self.state_dict().items()}

    @classmethod
    def on_meta(cls, config: ModelSpec) -> LongLLaVA:
        """Build the model without storage, to count parameters or to load weights into it."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def from_tensors(cls, config: ModelSpec, tensors: Mapping[str, Tensor]) -> LongLLaVA:
        """Build the model from weights under a checkpoint's names, ready for inference.

        Shapes and dtypes are those of the model's parameters. Parameters that never run may be
        absent; they become zeros.
        """
        model = cls.on_meta(config)
        names, unused = tensor_names(config), unused_parameters(config)
        absent = {path for path in unused if names[path] not in tensors}
        state = {path: tensors[name] for path, name in names.items() if path not in absent}
        dtype = state[EMBEDDING].dtype
        shapes = parameter_shapes(config)
        state |= {path: torch.zeros(shapes[path], dtype=dtype) for path in absent}
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval().requires_grad_(False)
