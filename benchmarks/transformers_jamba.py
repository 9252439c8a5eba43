"""The reference decoder's weights in transformers' Jamba: code nobody here wrote, as oracle and as peer.

Only tests and benchmarks use this; transformers is no dependency of the project.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from longllava_trt.models.jamba_layers import JAMBA_KEYS
from longllava_trt.models.spec import DecoderSpec
from longllava_trt.reference.model import LongLLaVA

__all__ = ["jamba_from_reference"]

_RENAMED = (
    ("pre_moe_layernorm", "pre_ff_layernorm"),
    (".moe.", ".feed_forward."),
    ("B_layernorm", "b_layernorm"),
    ("C_layernorm", "c_layernorm"),
)


def jamba_from_reference(model: LongLLaVA, *, attention: str = "eager") -> torch.nn.Module:
    """Build transformers' `JambaForCausalLM` with a model's decoder weights.

    Args:
        model: Gives config and weights; vision tower and projector have no place there.
        attention: transformers' attn_implementation.
    """
    import transformers

    decoder = model.config.decoder
    fields = {name: model.config.source[name] for name in JAMBA_KEYS}
    options: dict[str, Any] = {"tie_word_embeddings": False, "attn_implementation": attention}
    config = transformers.JambaConfig(**fields, **options)
    jamba: torch.nn.Module = transformers.JambaForCausalLM(config)
    jamba.eval().requires_grad_(False)
    state = {
        _jamba_name(name, decoder): value
        for name, value in model.named_tensors().items()
        if "vision_tower" not in name and "mm_projector" not in name
    }
    for layer, experts in decoder.moe_layers.items():
        _pack_experts(state, f"model.layers.{layer}.feed_forward.experts.", experts.num_experts)
    jamba.load_state_dict(state, strict=True)
    return jamba


def _jamba_name(name: str, decoder: DecoderSpec) -> str:
    """Rename a tensor of the original's to transformers' name for it (spec 3.1)."""
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    is_dense = layer is not None and int(layer[1]) not in decoder.moe_layers
    return name.replace("experts.0.", "") if is_dense else name


def _pack_experts(state: dict[str, torch.Tensor], prefix: str, num_experts: int) -> None:
    """Replace one layer's experts by transformers' two stacked tensors."""
    gate, up, down = (
        torch.stack([state.pop(f"{prefix}{e}.{n}.weight") for e in range(num_experts)])
        for n in ("gate_proj", "up_proj", "down_proj")
    )
    state[f"{prefix}gate_up_proj"] = torch.cat([gate, up], dim=1)
    state[f"{prefix}down_proj"] = down
