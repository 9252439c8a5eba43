"""Small models with random weights."""

from __future__ import annotations

import pytest
import torch

from longllava_trt.models.llava_jamba.presets import compose
from longllava_trt.models.spec import ModelSpec, VisionSpec
from longllava_trt.reference.model import LongLLaVA


def small_config(*, num_experts: int = 4, top_k: int = 2) -> ModelSpec:
    """Eight layers, so that both layer patterns occur: attention at 4, experts at odd layers."""
    return compose(
        VisionSpec(
            hidden_size=32,
            intermediate_size=64,
            num_layers=3,
            num_heads=2,
            image_size=56,
            patch_size=14,
        ),
        vocab_size=97,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=num_experts,
        num_experts_per_tok=top_k,
        mamba_dt_rank=4,
    )


def randomise(model: torch.nn.Module, *, seed: int = 0) -> None:
    """Give every parameter values under which no term of the model is negligible."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "D")):
            value = 1 + 0.2 * noise
        elif name.endswith("A_log"):
            value = 0.5 * noise
        elif "embed" in name:
            value = noise
        elif parameter.dim() > 1:
            value = noise / parameter[0].numel() ** 0.5
        else:
            value = 0.3 * noise
        parameter.data.copy_(value)


@pytest.fixture(params=[(16, 2), (4, 2), (1, 1)], ids=["moe16", "moe4", "dense"])
def model(request: pytest.FixtureRequest) -> LongLLaVA:
    """A random float32 model: routed as the 53B, or dense as the 9B."""
    num_experts, top_k = request.param
    built = LongLLaVA(small_config(num_experts=num_experts, top_k=top_k)).eval()
    built.requires_grad_(False)
    randomise(built)
    return built
