"""The model's configuration, read strictly from a checkpoint's own files.

Knows the keys of LongLLaVA's config.json (`model_type: llava_jamba`) and of a CLIP vision config. A key that
changes the mathematics is either honoured or refused; a key that cannot is on a written list. Nothing is guessed
from a path, except the one name the original itself uses for its vision tower.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object

__all__ = ["DecoderConfig", "LongLLaVAConfig", "VisionConfig", "load_config"]

logger = logging.getLogger(__name__)

LayerKind = Literal["attention", "mamba"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """CLIP vision tower. The defaults are ViT-L/14-336, the only tower the published models use."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require_positive(self, "vision tower")
        if self.image_size % self.patch_size or self.patches_per_side % 2:
            raise ConfigError(
                f"vision tower: image_size {self.image_size} must hold an even number of patches of "
                f"{self.patch_size} pixels a side, so that 2x2 pooling is exact"
            )
        _require_divisible(self.hidden_size, self.num_attention_heads, "vision tower")

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the image; 24 for ViT-L/14-336."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches in an image; 576 for ViT-L/14-336."""
        return self.patches_per_side**2

    @property
    def num_image_tokens(self) -> int:
        """Decoder positions one image takes after 2x2 pooling; 144 for ViT-L/14-336."""
        return self.num_patches // 4

    @property
    def num_run_layers(self) -> int:
        """Encoder layers that run: the feature is hidden_states[-2], so the last one does not."""
        return self.num_hidden_layers - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Jamba hybrid decoder. Field names are those of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    attn_layer_period: int
    attn_layer_offset: int
    expert_layer_period: int
    expert_layer_offset: int
    num_experts: int
    num_experts_per_tok: int
    mamba_d_state: int
    mamba_d_conv: int
    mamba_expand: int
    mamba_dt_rank: int
    rms_norm_eps: float

    def __post_init__(self) -> None:
        zero_allowed = {"attn_layer_offset", "expert_layer_offset"}
        _require_positive(self, "decoder", zero_allowed=zero_allowed)
        _require_divisible(self.hidden_size, self.num_attention_heads, "decoder")
        _require_divisible(self.num_attention_heads, self.num_key_value_heads, "decoder")
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"decoder: num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def d_inner(self) -> int:
        """Channels of the Mamba mixer."""
        return self.mamba_expand * self.hidden_size

    @property
    def conv_state_width(self) -> int:
        """Past columns the causal convolution needs: d_conv - 1 (transformers stores one more)."""
        return self.mamba_d_conv - 1

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Mixer of each layer."""
        return tuple(
            "attention" if i % self.attn_layer_period == self.attn_layer_offset else "mamba"
            for i in range(self.num_hidden_layers)
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers whose feed-forward is routed."""
        return tuple(i for i in range(self.num_hidden_layers) if self.is_moe_layer(i))

    def is_moe_layer(self, layer: int) -> bool:
        """Tell whether the layer's feed-forward is a routed mixture (never so with a single expert)."""
        return self.num_experts > 1 and layer % self.expert_layer_period == self.expert_layer_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class LongLLaVAConfig:
    """The whole model: vision tower, projector and decoder, with the ids the protocol needs."""

    vision: VisionConfig
    decoder: DecoderConfig
    torch_dtype: str = "bfloat16"
    """Dtype the checkpoint says it was saved in; the tensors' own dtypes are read from their headers."""
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    tokenizer_model_max_length: int | None = None
    """The original cuts prompts at this length; we report it and do not cut (spec 6.5)."""
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The config.json this came from, unchanged."""


_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llava_jamba",),
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False,),
    "mamba_conv_bias": (True,),
    "mamba_proj_bias": (False,),
    "mamba_inner_layernorms": (True,),
    "sliding_window": (None,),
    "attention_dropout": (0.0,),
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_layer": (-2,),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "mm_use_im_patch_token": (False,),
    "mm_use_im_start_end": (False,),
    "image_aspect_ratio": ("pad",),
    "resamplePooling": ("2d",),
    "use_mm_proj": (True,),
}
"""Keys that change the mathematics and whose other values nobody has released."""

_OPTIONAL_FIXED = frozenset(
    {"attention_dropout", "sliding_window", "use_mm_proj", "resamplePooling", "mm_patch_merge_type"}
)

_IGNORED = frozenset(
    """
    _name_or_path architectures auto_map calc_logits_for_entire_prompt freeze_mm_mlp_adapter initializer_range
    max_position_embeddings mm_projector_lr n_ctx num_logits_to_keep output_router_logits router_aux_loss_coef
    tokenizer_padding_side transformers_version tune_mm_mlp_adapter use_cache use_mamba_kernels
    unfreeze_mm_vision_tower dtype
    """.split()
)
"""Keys without influence on inference."""

_DECODER_FIELDS = tuple(DecoderConfig.__dataclass_fields__)
_TOP_FIELDS = frozenset(
    {
        "torch_dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tokenizer_model_max_length",
        "mm_vision_tower",
    }
    | {"mm_hidden_size"}
)
_WHOSE = "the folder of a checkpoint holds config.json beside its weights"
_CLIP_L_336 = ("clip-vit-large-patch14-336", "clip_vit_large_patch14_336")


def load_config(checkpoint: Path, *, vision_tower: Path | None = None) -> LongLLaVAConfig:
    """Read and check a checkpoint's config.json.

    Args:
        checkpoint: Folder that holds config.json.
        vision_tower: Folder whose config.json describes the vision tower, in place of what `mm_vision_tower` says.

    Raises:
        ConfigError: Lists every key that is missing, unknown, or has a value that is not supported.
    """
    path = checkpoint / "config.json"
    raw = read_json_object(path, whose=_WHOSE)
    problems = _check_keys(raw)
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    if "resamplePooling" not in raw:
        logger.warning(
            "%s has no 'resamplePooling'; using '2d' (144 tokens an image), as the released models do",
            path,
        )
    fields = {name: raw[name] for name in _DECODER_FIELDS}
    if fields["mamba_dt_rank"] == "auto":
        fields["mamba_dt_rank"] = -(-int(raw["hidden_size"]) // 16)
    wrong = [
        f"'{name}' must be a number, got {value!r}"
        for name, value in fields.items()
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if wrong:
        raise ConfigError(f"{path}: " + "; ".join(wrong))
    vision = _load_vision_config(checkpoint, str(raw["mm_vision_tower"]), override=vision_tower)
    if vision.hidden_size != raw["mm_hidden_size"]:
        raise ConfigError(
            f"{path}: 'mm_hidden_size' is {raw['mm_hidden_size']}, but the vision tower is {vision.hidden_size} wide"
        )
    return LongLLaVAConfig(
        vision=vision,
        decoder=DecoderConfig(**fields),
        torch_dtype=raw.get("torch_dtype") or "bfloat16",
        bos_token_id=raw.get("bos_token_id", 1),
        eos_token_id=raw.get("eos_token_id", 2),
        pad_token_id=raw.get("pad_token_id", 0),
        tokenizer_model_max_length=raw.get("tokenizer_model_max_length"),
        source=raw,
    )


def _check_keys(raw: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the keys of config.json, all of it."""
    known = set(_DECODER_FIELDS) | set(_FIXED) | _IGNORED | _TOP_FIELDS
    required = (
        set(_DECODER_FIELDS)
        | (set(_FIXED) - _OPTIONAL_FIXED)
        | {"mm_vision_tower", "mm_hidden_size"}
    )
    problems = [f"missing key '{key}'" for key in sorted(required - raw.keys())]
    problems += [
        f"unknown key '{key}' (its effect on the model is not known to this version)"
        for key in sorted(raw.keys() - known)
    ]
    problems += [
        f"'{key}' must be {' or '.join(map(repr, allowed))}, got {raw[key]!r}"
        for key, allowed in _FIXED.items()
        if key in raw and raw[key] not in allowed
    ]
    return problems


def _load_vision_config(checkpoint: Path, tower: str, *, override: Path | None) -> VisionConfig:
    """Find the vision tower's geometry: an override, a folder inside the checkpoint, or the published name."""
    for folder in (override, checkpoint / tower):
        if folder is not None and (folder / "config.json").is_file():
            return _vision_config_from_json(folder / "config.json")
    if override is not None:
        raise ConfigError(
            f"{override / 'config.json'}: not found; give a folder with a CLIP config.json"
        )
    if Path(tower).name in _CLIP_L_336:
        return VisionConfig()
    raise ConfigError(
        f"{checkpoint / 'config.json'}: 'mm_vision_tower' is {tower!r}, which is neither a folder in the checkpoint with "
        f"a config.json nor one of {', '.join(_CLIP_L_336)}; name the tower's folder with --vision-tower"
    )


def _vision_config_from_json(path: Path) -> VisionConfig:
    raw = read_json_object(path, whose=_WHOSE)
    raw = raw.get("vision_config", raw)
    if raw.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ConfigError(f"{path}: 'hidden_act' must be 'quick_gelu', got {raw['hidden_act']!r}")
    names = VisionConfig.__dataclass_fields__
    missing = sorted(set(names) - raw.keys() - {"layer_norm_eps"})
    if missing:
        raise ConfigError(f"{path}: missing " + ", ".join(f"'{name}'" for name in missing))
    return VisionConfig(**{name: raw[name] for name in names if name in raw})


def _require_positive(
    config: Any, place: str, *, zero_allowed: frozenset[str] | set[str] = frozenset()
) -> None:
    bad = [
        f"{name}={value!r}"
        for name in type(config).__dataclass_fields__
        if not (value := getattr(config, name)) > 0 and not (name in zero_allowed and value == 0)
    ]
    if bad:
        raise ConfigError(f"{place}: must be positive: {', '.join(bad)}")


def _require_divisible(whole: int, part: int, place: str) -> None:
    if whole % part:
        raise ConfigError(f"{place}: {whole} is not divisible by {part}")
