"""The decoder's forward pass as functions over our kernels; it computes the same as the reference.

Every layer is h = x + mixer(norm(x)); out = h + feed_forward(norm(h)). One kernel adds and takes
the norm that follows, so a layer returns both terms of its sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from longllava_trt.models.spec import AttentionSpec, DecoderSpec, ExpertsSpec, FeedForwardSpec
from longllava_trt.plugins_trt.kernels.activations import apply_swiglu
from longllava_trt.plugins_trt.kernels.cached_attention import cached_attention
from longllava_trt.plugins_trt.kernels.causal_conv import causal_conv
from longllava_trt.plugins_trt.kernels.mamba_scan import mamba_scan
from longllava_trt.plugins_trt.kernels.rms_norm import rms_norm, rms_norms_of_dt_b_c
from longllava_trt.plugins_trt.kernels.selective_scan import selective_scan
from longllava_trt.plugins_trt.kernels.sparse_moe import sparse_moe
from longllava_trt.plugins_trt.launch_plans.mixers import STEP_TOKENS
from longllava_trt.runtime.backends.kernels.rotary import rotary_tables
from longllava_trt.runtime.backends.kernels.state import SlotSpan
from longllava_trt.runtime.backends.kernels.weights import Weights

__all__ = ["DecoderModel", "Scan", "decode"]

Layer = Mapping[str, torch.Tensor]
States = tuple[torch.Tensor, torch.Tensor]
Scan = Callable[..., States]
"""Has the arguments of `selective_scan` up to `state_out`."""


@dataclass(frozen=True, slots=True)
class DecoderModel:
    """A decoder's weights."""

    spec: DecoderSpec
    layers: tuple[Layer, ...]
    """Each layer's tensors by name."""
    final_norm: torch.Tensor
    lm_head: torch.Tensor

    @classmethod
    def of(cls, spec: DecoderSpec, weights: Weights) -> DecoderModel:
        """Sort weights by layer.

        Args:
            spec: The decoder.
            weights: As `plan_decoder` names them.
        """
        layers: list[dict[str, torch.Tensor]] = [{} for _ in range(spec.num_layers)]
        for name, tensor in weights.items():
            if name.startswith("layers."):
                _, layer, short = name.split(".")
                layers[int(layer)][short] = tensor
        return cls(spec, tuple(layers), weights["final_norm"], weights["lm_head"])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of arithmetic."""
        return self.lm_head.dtype


def decode(
    model: DecoderModel, inputs_embeds: torch.Tensor, span: SlotSpan, *, scan: Scan | None = None
) -> torch.Tensor:
    """Feed the same number of positions to each of some neighbouring slots; advance their states.

    Args:
        model: Weights.
        inputs_embeds: Contiguous; never written. [slots, seq_len, hidden_size], of the model's
            dtype.
        span: States to read, and memory for the next states.
        scan: Scan to use in place of ours.

    Returns:
        Scores of the token that follows. [slots, vocab_size], float32.

    Stream:
        Runs on PyTorch's current stream; does not synchronise.
    """
    eps = model.spec.rms_norm_eps
    x, delta = inputs_embeds, None
    for spec, layer, states, written in zip(
        model.spec.layers, model.layers, span.layers, span.written, strict=True
    ):
        h, x = rms_norm(x, layer["input_norm"], eps=eps, delta=delta)
        if isinstance(spec.mixer, AttentionSpec):
            delta = _attend(spec.mixer, layer, h, states, span.past_len)
        else:
            delta = _mix(layer, h, states, written, scan=scan, eps=eps)
        h, x = rms_norm(x, layer["ff_norm"], eps=eps, delta=delta)
        delta = _feed_forward(spec.feed_forward, layer, h)
    torch.add(span.past_len, inputs_embeds.shape[1], out=span.next_len)
    assert delta is not None, "Bug: a decoder has layers"
    last = delta[:, -1].contiguous()
    h, _ = rms_norm(x[:, -1].contiguous(), model.final_norm, eps=eps, delta=last)
    return linear(h, model.lm_head).float()


def _attend(
    spec: AttentionSpec, layer: Layer, h: torch.Tensor, states: States, past_len: torch.Tensor
) -> torch.Tensor:
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    qkv = linear(h, layer["qkv"]).unflatten(-1, (heads + 2 * kv_heads, spec.head_dim))
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=2)
    key_cache, value_cache = states
    cos = sin = None
    if spec.rotary is not None:
        cos, sin = rotary_tables(spec.rotary, spec.head_dim, key_cache.shape[2], h.device)
    y = cached_attention(q, k, v, key_cache, value_cache, past_len, cos=cos, sin=sin)
    return linear(y.flatten(2), layer["o_proj"])


def _mix(
    layer: Layer, h: torch.Tensor, states: States, written: States, *, scan: Scan | None, eps: float
) -> torch.Tensor:
    conv_state, recurrent_state = states
    xz = linear(h, layer["in_proj"])
    x, z = xz.chunk(2, dim=-1)
    u, _ = causal_conv(
        x.transpose(1, 2),
        layer["conv_weight"],
        layer["conv_bias"],
        conv_state,
        present_state=written[0],
    )
    u = u.transpose(1, 2)
    projected = linear(u, layer["x_proj"])
    norms = (layer["dt_norm"], layer["B_norm"], layer["C_norm"])
    if scan is None and h.shape[1] <= STEP_TOKENS:
        y, _ = mamba_scan(
            u,
            projected,
            *norms,
            layer["dt_proj"],
            layer["dt_bias"],
            layer["A_log"],
            layer["D"],
            xz,
            recurrent_state,
            eps=eps,
            state_out=written[1],
        )
        return linear(y, layer["out_proj"])
    dt, B, C = rms_norms_of_dt_b_c(projected, *norms, eps=eps)
    y, _ = (scan or selective_scan)(
        u,
        linear(dt, layer["dt_proj"]),
        layer["A_log"],
        B,
        C,
        layer["D"],
        z,
        layer["dt_bias"],
        recurrent_state,
        state_out=written[1],
    )
    return linear(y, layer["out_proj"])


def _feed_forward(spec: FeedForwardSpec, layer: Layer, h: torch.Tensor) -> torch.Tensor:
    if not isinstance(spec, ExpertsSpec):
        return linear(apply_swiglu(linear(h, layer["gate_up"])), layer["down"])
    rows = h.flatten(0, 1)
    y = sparse_moe(
        rows,
        linear(rows, layer["router"]),
        layer["experts_gate_up"],
        layer["experts_down"],
        top_k=spec.top_k,
        gate_up_scales=layer.get("experts_gate_up_scales"),
        down_scales=layer.get("experts_down_scales"),
    )
    return y.view_as(h)
