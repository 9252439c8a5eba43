"""The description of a model of any family: sizes and kinds of layers, as data.

A family's reader makes a `ModelSpec` from a checkpoint's own files; all other code uses it and does
not ask for the family. Each class checks its values. Widths are numbers of elements, counts are
positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from longllava_trt.core.errors import ConfigError

__all__ = [
    "AttentionSpec",
    "ConnectorSpec",
    "DecoderSpec",
    "DenseSpec",
    "ExpertsSpec",
    "FeedForwardSpec",
    "LayerKind",
    "LayerSpec",
    "MambaSpec",
    "MixerSpec",
    "ModelSpec",
    "RotarySpec",
    "VisionSpec",
]

LayerKind = Literal["attention", "mamba"]

_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """CLIP vision tower. The defaults are ViT-L/14 at 336 pixels, as in most published models."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    activation: str = "quick_gelu"
    """`quick_gelu`: x · sigmoid(1.702 x), OpenAI's; or `gelu`, the exact one."""
    layer_norm_eps: float = 1e-5
    feature_layers: tuple[int, ...] = (-2,)
    """Hidden states that are the feature, joined along their width: 0 is the embeddings, k the output
    of layer k; negative numbers count from the last."""
    keep_class_token: bool = False
    """Whether the feature has the class token before the patches."""

    def __post_init__(self) -> None:
        _require_positive(self, "vision tower")
        _require_divisible(self.hidden_size, self.num_heads, "vision tower")
        if self.image_size < self.patch_size:
            raise ConfigError(
                f"vision tower: image_size {self.image_size} must hold a patch of {self.patch_size} pixels"
            )
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"vision tower: activation must be {' or '.join(_ACTIVATIONS)}, got '{self.activation}'"
            )
        states = self.num_layers + 1
        if not self.feature_layers or any(not -states <= i < states for i in self.feature_layers):
            raise ConfigError(
                f"vision tower: feature layers must be among {states} hidden states, got {self.feature_layers}"
            )

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the image; 24 for ViT-L/14 at 336 pixels."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.patches_per_side**2

    @property
    def num_features(self) -> int:
        """Rows of the feature: one for each patch, and the class token if it is kept."""
        return self.num_patches + self.keep_class_token

    @property
    def feature_size(self) -> int:
        """Width of the feature."""
        return self.hidden_size * len(self.feature_layers)

    @property
    def feature_states(self) -> tuple[int, ...]:
        """Indices of the hidden states that are the feature; the embeddings have index 0."""
        return tuple(i % (self.num_layers + 1) for i in self.feature_layers)

    @property
    def num_run_layers(self) -> int:
        """Number of encoder layers that run: up to the last one that the feature needs."""
        return max(self.feature_states)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSpec:
    """Patch features to decoder positions: pooling, then linear layers with GELU between them."""

    num_layers: int = 2
    pooling: int = 1
    """Side of the square of patches that are averaged into one; 1 for none."""
    bias: bool = True

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.pooling not in {1, 2}:
            raise ConfigError(
                f"connector: layers must be positive and pooling 1 or 2, got {self.num_layers} and {self.pooling}"
            )


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
        _require_positive(self, "rotary positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Grouped-query causal attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary: RotarySpec | None = None
    """None: no position encoding at all."""

    def __post_init__(self) -> None:
        _require_positive(self, "attention")
        _require_divisible(self.num_heads, self.num_kv_heads, "attention")

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
        _require_positive(self, "mamba")

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
        _require_positive(self, "feed-forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """SwiGLU experts behind a router: softmax over all, the best `top_k`, not renormalised."""

    num_experts: int
    top_k: int
    intermediate_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "experts")
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
        _require_positive(self, "decoder")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A whole model, with the ids that a prompt needs."""

    model_type: str
    """Its family, as config.json names it."""
    decoder: DecoderSpec
    vision: VisionSpec | None = None
    """None for a text model."""
    connector: ConnectorSpec | None = None
    torch_dtype: str = "bfloat16"
    """Dtype in config.json; the tensors' own dtypes are in their headers."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end an answer; the first is the usual one."""
    pad_token_id: int | None = None
    max_positions: int | None = None
    """Largest number of positions in config.json; it is only reported, and limits nothing."""
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The config.json this came from, unchanged."""

    def __post_init__(self) -> None:
        if (self.vision is None) != (self.connector is None):
            raise ConfigError("model: a vision tower and a connector come together or not at all")
        if self.vision is None or self.connector is None or self.connector.pooling == 1:
            return
        if self.vision.patches_per_side % self.connector.pooling or self.vision.keep_class_token:
            raise ConfigError(
                f"vision tower: image_size {self.vision.image_size} must hold an even number of patches of "
                f"{self.vision.patch_size} pixels a side, and no class token, so that 2x2 pooling is exact"
            )

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of its bundle, in the order in which data passes them."""
        text = ("embed", "decoder")
        return text if self.vision is None else ("vision", "projector", *text)

    @property
    def num_image_tokens(self) -> int:
        """Decoder positions of one image of the tower's size; 0 for a text model."""
        if self.vision is None or self.connector is None:
            return 0
        return self.vision.num_features // self.connector.pooling**2

    def require_vision(self) -> VisionSpec:
        """Return the vision tower; `ConfigError` if there is none."""
        if self.vision is None:
            raise ConfigError(f"{self.model_type}: a text model has no vision tower")
        return self.vision

    def require_connector(self) -> ConnectorSpec:
        """Return the connector; `ConfigError` if there is none."""
        if self.connector is None:
            raise ConfigError(f"{self.model_type}: a text model has no connector")
        return self.connector


def _require_positive(spec: Any, where: str) -> None:
    """Check every number among a spec's fields."""
    numbers = {f.name: getattr(spec, f.name) for f in fields(spec)}
    bad = [
        f"{name}={value!r}"
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0
    ]
    if bad:
        raise ConfigError(f"{where}: must be positive: {', '.join(bad)}")


def _require_divisible(whole: int, part: int, where: str) -> None:
    if whole % part:
        raise ConfigError(f"{where}: {whole} is not divisible by {part}")
