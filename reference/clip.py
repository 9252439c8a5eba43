"""CLIP's vision transformer up to the last layer that its feature needs (spec 4.2, 4.3).

Written here, not imported, so that tests can compare it with transformers' CLIP. All parameters of
the checkpoint are here, also those that do not run: layers after the feature, and post_layernorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from longllava_trt.models.spec import VisionSpec
from longllava_trt.reference.operators import Operators

__all__ = ["VisionTransformer"]


class _Embeddings(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        hidden, patch = spec.hidden_size, spec.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(hidden))
        self.patch_embedding = nn.Conv2d(3, hidden, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(spec.num_patches + 1, hidden)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.head_dim = spec.hidden_size // spec.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(spec.hidden_size, spec.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y: Tensor = self.out_proj(ops.full_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class _MLP(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.activation == "quick_gelu" else F.gelu(x)
        y: Tensor = self.fc2(x)
        return y


class _Layer(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.self_attn = _Attention(spec)
        self.layer_norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.mlp = _MLP(spec)

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), ops)
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class _Encoder(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(spec) for _ in range(spec.num_layers))


class VisionTransformer(nn.Module):
    """The vision tower. Parameter names are those below `vision_model.`, misspelling included."""

    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        self.feature_states = spec.feature_states
        self.keep_class_token = spec.keep_class_token
        self.embeddings = _Embeddings(spec)
        self.pre_layrnorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.encoder = _Encoder(spec)
        self.post_layernorm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)

    def forward(self, pixel_values: Tensor, ops: Operators) -> tuple[Tensor, list[Tensor]]:
        """Encode images.

        Args:
            pixel_values: Preprocessed images. [num_images, 3, image_size, image_size], T.
            ops: Implementation of the operators.

        Returns:
            image_features: Hidden states that are the feature, joined.
                [num_images, num_features, feature_size], T.
            hidden_states: Residual stream after each layer that ran, class token included. Each
                [num_images, 1 + num_patches, hidden_size], T.
        """
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        states = [x]
        for layer in list(self.encoder.layers)[: max(self.feature_states)]:
            x = layer(x, ops)
            states.append(x)
        chosen = [states[i] for i in self.feature_states]
        features = chosen[0] if len(chosen) == 1 else torch.cat(chosen, dim=-1)
        return features if self.keep_class_token else features[:, 1:], states[1:]
