"""Llama's and Mistral's keys in a config.json: attention with rotary positions, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.config_reader import ConfigReader
from longllava_trt.models.spec import (
    AttentionSpec,
    DecoderSpec,
    DenseSpec,
    LayerSpec,
    RotarySpec,
    check_depth,
)

__all__ = ["LLAMA", "MISTRAL", "LlamaKeys", "read_llama"]

LLAMA: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}
"""Defaults of transformers' class, for files that list only what differs from them."""

MISTRAL: Mapping[str, Any] = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
"""As `LLAMA`; without the key `sliding_window`, transformers uses a window."""

_HARMLESS = ("attention_dropout", "dtype", "model_type", "torch_dtype")
_SCALING_KEYS = ("factor", "original_max_position_embeddings")
_NO_SCALING = "angles that other rules scale are not supported"


class LlamaKeys(NamedTuple):
    """Numbers of a decoder, read and checked one by one."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_embeddings: bool
    max_positions: int
    rotary: RotarySpec

    def decoder(self) -> DecoderSpec:
        """Return the decoder; `ConfigError` if the numbers do not fit one another."""
        check_depth(self.num_layers)
        if (
            self.hidden_size % self.num_heads
            and self.head_dim == self.hidden_size // self.num_heads
        ):
            raise ConfigError(
                f"decoder: hidden_size {self.hidden_size} is not divisible by {self.num_heads} heads"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"decoder: head_dim must be even for rotary positions, got {self.head_dim}"
            )
        layer = LayerSpec(
            mixer=AttentionSpec(
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                rotary=self.rotary,
            ),
            feed_forward=DenseSpec(intermediate_size=self.intermediate_size),
        )
        return DecoderSpec(
            layers=(layer,) * self.num_layers,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            rms_norm_eps=self.rms_norm_eps,
            tie_embeddings=self.tie_embeddings,
        )


def read_llama(reader: ConfigReader, defaults: Mapping[str, Any]) -> LlamaKeys:
    """Read a decoder's keys.

    Args:
        reader: The object that has them.
        defaults: Values of keys that are absent: `LLAMA`, `MISTRAL`, or fewer where a file must
            have them.
    """

    def whole(key: str) -> int:
        return reader.whole(key, defaults.get(key))

    hidden, heads = whole("hidden_size"), whole("num_attention_heads")
    kv_heads = reader.whole("num_key_value_heads", defaults.get("num_key_value_heads", heads))
    reader.one_of("hidden_act", ("silu",), "silu")
    for key in ("attention_bias", "mlp_bias"):
        reader.absent(key, why="layers with biases are not supported")
    if (window := reader.stored("sliding_window", defaults.get("sliding_window"))) is not None:
        reader.refuse(
            "sliding_window", "null", window, "attention within a window is not supported"
        )
    reader.harmless(_HARMLESS)
    head_dim = reader.whole("head_dim", max(1, hidden // heads))
    return LlamaKeys(
        vocab_size=whole("vocab_size"),
        hidden_size=hidden,
        intermediate_size=whole("intermediate_size"),
        num_layers=whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=reader.real("rms_norm_eps", defaults.get("rms_norm_eps")),
        tie_embeddings=reader.flag("tie_word_embeddings", default=False),
        max_positions=whole("max_position_embeddings"),
        rotary=_read_rotary(reader, defaults.get("rope_theta", 10000.0)),
    )


def _read_rotary(reader: ConfigReader, theta: float) -> RotarySpec:
    """Read `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of earlier ones."""
    theta = reader.real("rope_theta", theta)
    scaling = reader.nested("rope_scaling")
    rope = reader.nested("rope_parameters") if "rope_parameters" in reader else scaling
    theta = rope.real("rope_theta", theta)
    rope.one_of("partial_rotary_factor", (1.0,), 1.0, why="every pair of a head is rotated")
    kind = rope.value("rope_type", rope.value("type", "default"))
    if kind == "linear":
        return RotarySpec(theta=theta, scaling="linear", factor=rope.real("factor"))
    if kind == "llama3":
        return RotarySpec(
            theta=theta,
            scaling="llama3",
            factor=rope.real("factor"),
            low_freq_factor=rope.real("low_freq_factor"),
            high_freq_factor=rope.real("high_freq_factor"),
            original_max_positions=rope.whole("original_max_position_embeddings"),
        )
    if kind != "default":
        rope.refuse("rope_type", "default, linear or llama3", kind, _NO_SCALING)
    rope.harmless(_SCALING_KEYS)
    return RotarySpec(theta=theta)
