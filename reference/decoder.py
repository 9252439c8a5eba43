"""The decoder's layers: pre-norm residual blocks with a mixer and a feed-forward (spec 2.2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from longllava_trt.models.spec import AttentionSpec, DecoderSpec, FeedForwardSpec, MambaSpec
from longllava_trt.reference.attention import CausalSelfAttention
from longllava_trt.reference.cache import AttentionState, LayerState, MambaState
from longllava_trt.reference.mamba import MambaMixer
from longllava_trt.reference.moe import build_feed_forward
from longllava_trt.reference.norms import RMSNorm
from longllava_trt.reference.operators import Operators

__all__ = ["AttentionLayer", "DecoderLayer", "MambaLayer", "build_layer"]


class DecoderLayer(nn.Module, ABC):
    """h = x + mixer(norm(x)); out = h + feed_forward(norm(h))."""

    def __init__(self, feed_forward: FeedForwardSpec, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(hidden_size, eps=eps)
        self.feed_forward_norm = RMSNorm(hidden_size, eps=eps)
        self.feed_forward = build_feed_forward(feed_forward, hidden_size)

    @abstractmethod
    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Mix x [batch, seq_len, hidden_size], T, over time.

        Returns:
            Output like x, and the next state.
        """

    def forward(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Transform x [batch, seq_len, hidden_size], T, starting from ``state``.

        Returns:
            Output like x, and the next state.
        """
        mixed, state = self.mix(self.mixer_norm(x, ops), state, ops)
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x, ops), ops), state


class AttentionLayer(DecoderLayer):
    """A layer that mixes by attention."""

    def __init__(
        self, mixer: AttentionSpec, feed_forward: FeedForwardSpec, hidden_size: int, *, eps: float
    ) -> None:
        super().__init__(feed_forward, hidden_size, eps=eps)
        self.attention = CausalSelfAttention(mixer, hidden_size)

    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Attend; see `DecoderLayer.mix`."""
        assert isinstance(state, AttentionState), "Bug: attention layers carry keys and values"
        mixed: tuple[Tensor, LayerState] = self.attention(x, state, ops)
        return mixed


class MambaLayer(DecoderLayer):
    """A layer that mixes by a selective scan."""

    def __init__(
        self, mixer: MambaSpec, feed_forward: FeedForwardSpec, hidden_size: int, *, eps: float
    ) -> None:
        super().__init__(feed_forward, hidden_size, eps=eps)
        self.mamba = MambaMixer(mixer, hidden_size, eps=eps)

    def mix(self, x: Tensor, state: LayerState, ops: Operators) -> tuple[Tensor, LayerState]:
        """Scan; see `DecoderLayer.mix`."""
        assert isinstance(state, MambaState), "Bug: Mamba layers carry conv and recurrent states"
        mixed: tuple[Tensor, LayerState] = self.mamba(x, state, ops)
        return mixed


def build_layer(decoder: DecoderSpec, layer: int) -> DecoderLayer:
    """Build one layer as its specification says."""
    spec, hidden, eps = decoder.layers[layer], decoder.hidden_size, decoder.rms_norm_eps
    if isinstance(spec.mixer, AttentionSpec):
        return AttentionLayer(spec.mixer, spec.feed_forward, hidden, eps=eps)
    return MambaLayer(spec.mixer, spec.feed_forward, hidden, eps=eps)
