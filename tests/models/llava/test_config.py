"""LLaVA's config.json of both formats: which model it is, or one line with everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.registry import load_decoder_spec, load_model_spec
from longllava_trt.models.spec import ModelSpec, RotarySpec

TOWER = "openai/clip-vit-large-patch14-336"
HARMLESS = {
    "_name_or_path": "llava-v1.5-7b",
    "attention_dropout": 0.0,
    "attention_bias": False,
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "image_crop_resolution": 224,
    "image_split_resolution": 224,
    "initializer_range": 0.02,
    "max_length": 4096,
    "mm_projector_lr": None,
    "mm_resampler_type": None,
    "mm_use_im_patch_token": False,
    "mm_vision_tower_lr": 2e-6,
    "pretraining_tp": 1,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "transformers_version": "4.31.0",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": True,
    "use_cache": True,
}


def original(**changes: Any) -> dict[str, Any]:
    """Return the original's config.json of a 7B model; a change to `...` removes a key."""
    config = HARMLESS | {
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 32000,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER,
        "use_mm_proj": True,
    }
    return {k: v for k, v in (config | changes).items() if v is not ...}


def huggingface(**changes: Any) -> dict[str, Any]:
    """Return a published config.json of transformers' format, which says little."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }
    return {k: v for k, v in (config | changes).items() if v is not ...}


MISTRAL_TEXT = {
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "vocab_size": 32064,
}
POINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def read(folder: Path, config: dict[str, Any]) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_spec(folder)


ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}


@pytest.mark.parametrize(
    ("config", "title", "model_type"),
    [
        (original(mm_projector_type=..., image_aspect_ratio="square"), "LLaVA-1", "llava"),
        (original(mm_projector_type="linear"), "LLaVA-1", "llava"),
        (original(model_type="llava_llama"), "LLaVA-1.5", "llava_llama"),
        (original(**ANYRES, image_grid_pinpoints=POINTS), "LLaVA-1.6", "llava"),
        (
            original(
                **ANYRES,
                image_grid_pinpoints="[(224, 448), (448, 224)]",
                mm_vision_tower="openai/clip-vit-large-patch14",
            ),
            "LLaVA-1.5-HD",
            "llava",
        ),
        (
            original(
                **ANYRES,
                image_grid_pinpoints=POINTS,
                model_type="llava_mistral",
                num_key_value_heads=8,
                sliding_window=None,
                rope_theta=1e6,
            ),
            "LLaVA-1.6 (Mistral)",
            "llava_mistral",
        ),
        (huggingface(), "LLaVA-1.5", "llava"),
        (huggingface(model_type="llava_next"), "LLaVA-1.6", "llava_next"),
        (
            huggingface(model_type="llava_next", text_config=MISTRAL_TEXT),
            "LLaVA-1.6 (Mistral)",
            "llava_next",
        ),
    ],
)
def test_a_config_says_which_model_it_is(
    tmp_path: Path, config: dict[str, Any], title: str, model_type: str
) -> None:
    spec = read(tmp_path, config)
    assert (spec.title, spec.model_type) == (title, model_type)
    assert load_decoder_spec(tmp_path) == spec.decoder


def test_little_text_config_is_filled_with_llamas_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path, huggingface())
    decoder = spec.decoder
    attention = decoder.attention_layers[31]
    assert (decoder.hidden_size, decoder.num_layers, decoder.vocab_size) == (4096, 32, 32064)
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (32, 32, 128)
    assert attention.rotary == RotarySpec(theta=10000.0)
    assert decoder.rms_norm_eps == 1e-5
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2,), 32001)
    assert spec.images.token_id == 32000
    assert spec.num_image_tokens == 576


def test_pinpoints_are_turned_where_the_format_has_the_height_first(tmp_path: Path) -> None:
    points = [[336, 672], [1008, 336]]
    ours = read(tmp_path, original(**ANYRES, image_grid_pinpoints=points)).images
    theirs = read(tmp_path, huggingface(model_type="llava_next", image_grid_pinpoints=points)).images  # fmt: skip
    assert ours.pinpoints == ((336, 672), (1008, 336))
    assert theirs.pinpoints == ((672, 336), (336, 1008))
    assert (ours.has_newline, theirs.has_newline) == (True, True)


@pytest.mark.parametrize("place", ["top", "scaling", "parameters"])
def test_theta_and_scaling_are_where_each_version_has_them(tmp_path: Path, place: str) -> None:
    linear = {"type": "linear", "factor": 4.0}
    places: dict[str, dict[str, Any]] = {
        "top": {"rope_theta": 5e5},
        "scaling": {"rope_theta": 5e5, "rope_scaling": linear},
        "parameters": {
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
        },
    }
    keys = places[place]
    expected = (
        RotarySpec(theta=5e5)
        if place == "top"
        else RotarySpec(theta=5e5, scaling="linear", factor=4.0)
    )
    text = {"model_type": "llama", **keys}
    for config in (original(**{"rope_scaling": ..., **keys}), huggingface(text_config=text)):
        assert read(tmp_path, config).decoder.attention_layers[0].rotary == expected


def test_feature_layers_and_class_token(tmp_path: Path) -> None:
    several = huggingface(vision_feature_layer=[-2, 5], vision_feature_select_strategy="full")
    vision = read(tmp_path, several).require_vision()
    assert (vision.feature_layers, vision.num_features, vision.feature_size) == ((-2, 5), 577, 2048)
    kept = read(tmp_path, original(mm_vision_select_feature="cls_patch", mm_vision_select_layer=-1))
    assert kept.num_image_tokens == 577
    assert kept.require_vision().feature_layers == (-1,)


def test_a_list_of_end_ids_and_none_at_all(tmp_path: Path) -> None:
    assert read(tmp_path, original(eos_token_id=[2, 7])).eos_token_ids == (2, 7)
    assert read(tmp_path, original(eos_token_id=None)).eos_token_ids == ()
    assert read(tmp_path, original(eos_token_id=...)).eos_token_ids == (2,)


def text(**keys: Any) -> dict[str, Any]:
    return huggingface(text_config={"model_type": "llama", **keys})


UNKNOWN = "(its effect on the model is not known to this version)"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (original(hidden_size=...), "missing key 'hidden_size'"),
    "unknown": (original(rope_tetha=1), f"unknown key 'rope_tetha' {UNKNOWN}"),
    "unknown in text": (text(banana=1), f"unknown key 'text_config.banana' {UNKNOWN}"),
    "all at once": (
        original(model_type="llava_llama", hidden_act="gelu", mm_vision_tower=..., what=1),
        (
            "'hidden_act' must be 'silu', got 'gelu'; missing key 'mm_vision_tower'; "
            f"unknown key 'what' {UNKNOWN}"
        ),
    ),
    "window": (
        original(model_type="llava_mistral", sliding_window=4096),
        "'sliding_window' must be null, got 4096 (attention within a window is not supported)",
    ),
    "window by default": (
        original(model_type="llava_mistral"),
        "'sliding_window' must be null, got 4096 (attention within a window is not supported)",
    ),
    "window in text": (
        huggingface(text_config={**MISTRAL_TEXT, "sliding_window": 4096}),
        "'text_config.sliding_window' must be null, got 4096 (attention within a window is not supported)",
    ),
    "dynamic": (
        original(rope_scaling={"type": "dynamic", "factor": 2.0}),
        (
            "'rope_scaling.rope_type' must be default, linear or llama3, got 'dynamic' (angles that other rules scale are "
            "not supported)"
        ),
    ),
    "yarn": (
        text(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}),
        (
            "'text_config.rope_parameters.rope_type' must be default, linear or llama3, got 'yarn' (angles that other "
            "rules scale are not supported)"
        ),
    ),
    "scaling without factor": (
        original(rope_scaling={"type": "linear"}),
        "missing key 'rope_scaling.factor'",
    ),
    "part of a head": (
        text(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "'text_config.rope_parameters.partial_rotary_factor' must be 1.0, got 0.5 (every pair of a head is rotated)",
    ),
    "S2": (
        original(s2=True, s2_scales="336,672"),
        (
            "'s2' must be absent, got true (a tower that sees an image at several sizes (S2) is not supported); "
            "'s2_scales' must be absent, got '336,672' (a tower that sees an image at several sizes (S2) is not supported)"
        ),
    ),
    "resampler": (
        original(mm_resampler_type="qformer"),
        "'mm_resampler_type' must be absent, got 'qformer' (a resampler between tower and projector is not supported)",
    ),
    "no projector": (
        original(use_mm_proj=False),
        "'use_mm_proj' must be true, got false (a model without a projector)",
    ),
    "projector": (
        original(mm_projector_type="identity"),
        "'mm_projector_type' must be 'linear' or 'mlpNx_gelu', got 'identity'",
    ),
    "bias": (
        original(attention_bias=True),
        "'attention_bias' must be absent, got true (layers with biases are not supported)",
    ),
    "aspect": (
        original(image_aspect_ratio="anyres_max_9"),
        "'image_aspect_ratio' must be 'square' or 'pad' or 'anyres', got 'anyres_max_9'",
    ),
    "no pinpoints": (
        original(**ANYRES),
        "missing key 'image_grid_pinpoints', which 'anyres' chooses from",
    ),
    "pinpoints": (
        original(**ANYRES, image_grid_pinpoints="(1x1),...,(6x6)"),
        "'image_grid_pinpoints' must be a list of [width, height] in pixels, got '(1x1),...,(6x6)'",
    ),
    "pinpoints not tiles": (
        original(**ANYRES, image_grid_pinpoints=[[336, 500]]),
        "images: pinpoints must be multiples of the tower's image_size 336, got [(336, 500)]",
    ),
    "width of the tower": (
        original(mm_hidden_size=768),
        "'mm_hidden_size' is 768, but the vision tower is 1024 wide",
    ),
    "tower": (
        original(mm_vision_tower="google/siglip-so400m-patch14-384"),
        (
            "'mm_vision_tower' is 'google/siglip-so400m-patch14-384', which is neither a folder in the checkpoint with a "
            "config.json nor a published CLIP tower that is known; name the tower's folder with --vision-tower"
        ),
    ),
    "kind of tower": (
        huggingface(vision_config={"model_type": "siglip_vision_model", "hidden_size": 1024}),
        (
            "'vision_config.model_type' must be 'clip_vision_model' or 'clip', got 'siglip_vision_model' (another kind of "
            "tower)"
        ),
    ),
    "kind of decoder": (
        huggingface(text_config={"model_type": "qwen2"}),
        "'text_config.model_type' must be 'llama' or 'mistral', got 'qwen2' (another kind of decoder)",
    ),
    "projector's activation": (
        huggingface(projector_hidden_act="gelu_new"),
        "'projector_hidden_act' must be 'gelu', got 'gelu_new'",
    ),
    "feature layers": (
        huggingface(vision_feature_layer=[-2, "last"]),
        "'vision_feature_layer' must be a whole number or a list of them, got [-2, 'last']",
    ),
    "a layer that is not": (
        huggingface(vision_feature_layer=-40),
        "vision tower: feature layers must be among 25 hidden states, got (-40,)",
    ),
    "either format": (
        original(mm_vision_tower=...),
        (
            "model_type 'llava' is of two formats: expected 'text_config' (transformers) or 'mm_vision_tower' (the "
            "original), got neither; fetch the file again"
        ),
    ),
    "heads": (
        original(num_attention_heads=31, num_key_value_heads=31),
        "decoder: hidden_size 4096 is not divisible by 31 heads",
    ),
    "key/value heads": (original(num_key_value_heads=5), "attention: 32 is not divisible by 5"),
    "text for a number": (
        original(hidden_size="4096"),
        "'hidden_size' must be a whole number, got '4096'",
    ),
    "negative": (original(num_hidden_layers=-1), "'num_hidden_layers' must be positive, got -1"),
    "a billion layers": (
        original(num_hidden_layers=10**9),
        "decoder: num_hidden_layers must be at most 10000, got 1000000000",
    ),
    "an object": (huggingface(text_config=[1]), "'text_config' must be an object, got [1]"),
    "end id": (
        original(eos_token_id="</s>"),
        "'eos_token_id' must be a token id or a list of them, got '</s>'",
    ),
    "dtype": (
        original(torch_dtype="int8"),
        "'torch_dtype' must be 'float32' or 'float16' or 'bfloat16', got 'int8'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_honoured_is_one_line(tmp_path: Path, case: str) -> None:
    config, line = BAD[case]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, config)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {line}"


def test_an_unknown_key_can_be_ignored_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text(banana=1)))
    with pytest.raises(ConfigError):
        load_model_spec(tmp_path, ignored_keys=["banana"])
    assert load_model_spec(tmp_path, ignored_keys=["text_config.banana"]).title == "LLaVA-1.5"


def test_a_tower_of_ones_own_is_read(tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    sizes = huggingface()["vision_config"] | {"hidden_size": 64, "num_hidden_layers": 3}
    (tower / "config.json").write_text(json.dumps(sizes))
    (tmp_path / "config.json").write_text(
        json.dumps(original(mm_vision_tower="tower", mm_hidden_size=64))
    )
    assert load_model_spec(tmp_path).require_vision().num_layers == 3
    (tmp_path / "config.json").write_text(json.dumps(huggingface()))
    assert load_model_spec(tmp_path, vision_tower=tower).require_vision().hidden_size == 64
