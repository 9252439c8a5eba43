"""CLIP's vision transformer up to its penultimate layer (spec 4.2, 4.3).

Written out rather than imported, so that transformers' CLIP stays an independent oracle for it. All
parameters of the checkpoint are here, also those that do not run: the last layer and post_layernorm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longllava_trt.models.llava_jamba.config import VisionConfig
from longllava_trt.reference.operators import Operators

__all__ = ["VisionTransformer"]


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        hidden, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(hidden))
        self.patch_embedding = nn.Conv2d(3, hidden, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.num_patches + 1, hidden)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4)
        )

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y: Tensor = self.out_proj(ops.full_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class _MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        # quick_gelu, the published tower's activation
        y: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return y


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = _Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _MLP(config)

    def forward(self, x: Tensor, ops: Operators) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), ops)
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class _Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class VisionTransformer(nn.Module):
    """The vision tower. Parameter names are those below `vision_model.`, misspelling included."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_run_layers = config.num_run_layers
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, ops: Operators) -> tuple[Tensor, list[Tensor]]:
        """Encode images.

        Args:
            pixel_values: Preprocessed images. [num_images, 3, image_size, image_size].
            ops: How operators are carried out.

        Returns:
            image_features: Penultimate patch features. [num_images, num_patches, hidden_size].
            hidden_states: Residual stream after each layer that ran, class token included.
        """
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        hidden_states = []
        for layer in list(self.encoder.layers)[: self.num_run_layers]:
            x = layer(x, ops)
            hidden_states.append(x)
        return x[:, 1:], hidden_states
