"""The decoder of a model as data: kinds and sizes of its layers.

Widths are numbers of elements, counts are positive; each class checks its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.spec_checks import require_divisible, require_positive

__all__ = [
    "AttentionSpec",
    "DecoderSpec",
    "DenseSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "LayerKind",
    "LayerSpec",
    "MambaSpec",
    "MixerSpec",
    "RotarySpec",
    "check_depth",
]

LayerKind = Literal["attention", "mamba"]

_MOST_LAYERS = 10_000
"""Far more than any model has; a larger number would fill the memory before anything is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotarySpec:
    """Rotary positions: half-split pairs, angles in float32."""

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        require_positive(self, "rotary positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Grouped-query causal attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary: RotarySpec | None = None
    """None: no position encoding at all."""

    def __post_init__(self) -> None:
        require_positive(self, "attention")
        require_divisible(self.num_heads, self.num_kv_heads, "attention")

    @property
    def kind(self) -> LayerKind:
        """The word for it."""
        return "attention"

    @property
    def q_size(self) -> int:
        """Width of all queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all keys, and of all values."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaSpec:
    """Mamba-1 mixer with RMSNorm on dt, B and C."""

    d_inner: int
    d_state: int
    d_conv: int
    dt_rank: int

    def __post_init__(self) -> None:
        require_positive(self, "mamba")

    @property
    def kind(self) -> LayerKind:
        """The word for it."""
        return "mamba"

    @property
    def conv_state_width(self) -> int:
        """Past columns the causal convolution needs: d_conv - 1 (transformers stores one more)."""
        return self.d_conv - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSpec:
    """One SwiGLU feed-forward for every token."""

    intermediate_size: int

    def __post_init__(self) -> None:
        require_positive(self, "feed-forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """SwiGLU experts behind a router: softmax over all, the best `top_k`, not renormalised."""

    num_experts: int
    top_k: int
    intermediate_size: int

    def __post_init__(self) -> None:
        require_positive(self, "experts")
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"experts: {self.top_k} of them cannot be chosen from {self.num_experts}"
            )


MixerSpec: TypeAlias = AttentionSpec | MambaSpec
FeedForwardSpec: TypeAlias = DenseSpec | ExpertsSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One pre-norm residual block of the decoder."""

    mixer: MixerSpec
    feed_forward: FeedForwardSpec

    @property
    def kind(self) -> LayerKind:
        """Kind of the mixer."""
        return self.mixer.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """The decoder, layer by layer."""

    layers: tuple[LayerSpec, ...]
    vocab_size: int
    hidden_size: int
    rms_norm_eps: float
    tie_embeddings: bool = False
    """Whether the head is the embedding table."""

    def __post_init__(self) -> None:
        require_positive(self, "decoder")
        if not self.layers:
            raise ConfigError("decoder: must have layers, got none")

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Mixer of each layer."""
        return tuple(layer.kind for layer in self.layers)

    @property
    def attention_layers(self) -> Mapping[int, AttentionSpec]:
        """Attention by the layer's number."""
        return {i: m for i, m in enumerate(self.mixers) if isinstance(m, AttentionSpec)}

    @property
    def mamba_layers(self) -> Mapping[int, MambaSpec]:
        """Mamba mixers by the layer's number."""
        return {i: m for i, m in enumerate(self.mixers) if isinstance(m, MambaSpec)}

    @property
    def moe_layers(self) -> Mapping[int, ExpertsSpec]:
        """Routed feed-forwards by the layer's number."""
        forwards = (layer.feed_forward for layer in self.layers)
        return {i: f for i, f in enumerate(forwards) if isinstance(f, ExpertsSpec)}

    @property
    def mixers(self) -> tuple[MixerSpec, ...]:
        """Mixer of each layer."""
        return tuple(layer.mixer for layer in self.layers)


def check_depth(num_layers: int, *, where: str = "decoder") -> None:
    """Refuse a number of layers that no model has, before they are made."""
    if num_layers > _MOST_LAYERS:
        raise ConfigError(
            f"{where}: num_hidden_layers must be at most {_MOST_LAYERS}, got {num_layers}"
        )
