"""The Jamba decoder's layers: pre-norm residual blocks in a fixed pattern of mixers (spec 2.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from longllava_trt.models.llava_jamba.config import DecoderConfig
from longllava_trt.reference.attention import CausalSelfAttention
from longllava_trt.reference.cache import AttentionState, LayerState, MambaState
from longllava_trt.reference.mamba import MambaMixer
from longllava_trt.reference.moe import FeedForward
from longllava_trt.reference.norms import RMSNorm
from longllava_trt.reference.operators import Operators

__all__ = ["AttentionLayer", "DecoderLayer", "MambaLayer", "build_layer"]


class DecoderLayer(nn.Module, ABC):
    """h = x + mixer(norm(x)); out = h + feed_forward(norm(h))."""

    def __init__(self, config: DecoderConfig, *, is_moe: bool) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_moe_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.moe = FeedForward(config, is_moe=is_moe)

    @abstractmethod
    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Mix over time."""

    def forward(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Transform x [batch, seq_len, hidden_size], continuing from ``state``."""
        mixed, state = self.mix(self.input_layernorm(x, ops), state, ops)
        x = x + mixed
        return x + self.moe(self.pre_moe_layernorm(x, ops), ops), state


class AttentionLayer(DecoderLayer):
    """A layer that mixes by attention."""

    def __init__(self, config: DecoderConfig, *, is_moe: bool) -> None:
        super().__init__(config, is_moe=is_moe)
        self.self_attn = CausalSelfAttention(config)

    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Attend."""
        assert isinstance(state, AttentionState), "Bug: attention layers carry keys and values"
        mixed: tuple[Tensor, LayerState] = self.self_attn(x, state, ops)
        return mixed


class MambaLayer(DecoderLayer):
    """A layer that mixes by a selective scan."""

    def __init__(self, config: DecoderConfig, *, is_moe: bool) -> None:
        super().__init__(config, is_moe=is_moe)
        self.mamba = MambaMixer(config)

    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Scan."""
        assert isinstance(state, MambaState), "Bug: Mamba layers carry conv and recurrent states"
        mixed: tuple[Tensor, LayerState] = self.mamba(x, state, ops)
        return mixed


def build_layer(config: DecoderConfig, layer: int) -> DecoderLayer:
    """Build one layer of the pattern."""
    kind = AttentionLayer if config.layer_kinds[layer] == "attention" else MambaLayer
    return kind(config, is_moe=config.is_moe_layer(layer))
