"""The hybrid cache: the state that a decoder carries from one call to the next.

A cache has one state for each layer. Calls do not change it; they return a new cache, so a caller
can keep a cache and continue from it later. Unlike in the original and in transformers, a call with
several tokens continues the Mamba state instead of starting at zero (spec 8.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longllava_trt.models.spec import AttentionSpec, DecoderSpec

__all__ = ["AttentionState", "HybridCache", "LayerState", "MambaState", "empty_cache"]


class AttentionState(NamedTuple):
    """Keys and values seen so far, not repeated over query groups."""

    key: Tensor
    """[batch, num_kv_heads, past_len, head_dim], T."""
    value: Tensor
    """[batch, num_kv_heads, past_len, head_dim], T."""


class MambaState(NamedTuple):
    """State of a Mamba mixer, of constant size."""

    conv_state: Tensor
    """Last d_conv - 1 columns before bias and SiLU, oldest first.

    [batch, d_inner, d_conv - 1], T.
    """
    recurrent_state: Tensor
    """[batch, d_inner, d_state], float32, or T to follow the original bit by bit."""


LayerState = AttentionState | MambaState
HybridCache = tuple[LayerState, ...]


def empty_cache(
    decoder: DecoderSpec,
    *,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    ssm_state_dtype: torch.dtype = torch.float32,
) -> HybridCache:
    """Return the cache of a new sequence.

    Args:
        decoder: Specification of the layers.
        batch: Number of sequences.
        dtype: The model's dtype, of keys, values and conv states.
        ssm_state_dtype: Dtype in which recurrent states are kept between calls. float32 is exact;
            the original keeps them in the model's dtype (spec 2.6).
    """
    states: list[LayerState] = []
    for mixer in decoder.mixers:
        if isinstance(mixer, AttentionSpec):
            empty = torch.zeros(batch, mixer.num_kv_heads, 0, mixer.head_dim, dtype=dtype)
            states.append(AttentionState(empty, empty))
        else:
            conv = torch.zeros(batch, mixer.d_inner, mixer.conv_state_width, dtype=dtype)
            recurrent = torch.zeros(batch, mixer.d_inner, mixer.d_state, dtype=ssm_state_dtype)
            states.append(MambaState(conv, recurrent))
    return tuple(states)
