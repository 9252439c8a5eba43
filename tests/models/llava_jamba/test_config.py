"""config.json is honoured or refused, never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.registry import load_decoder_spec, load_model_spec


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the published 53B's config.json, as far as it is known (spec 1.2)."""
    write(tmp_path, published())
    return tmp_path


def published(**changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["LlavaJambaForCausalLM"],
        "attention_dropout": 0.0,
        "attn_layer_offset": 4,
        "attn_layer_period": 8,
        "bos_token_id": 1,
        "calc_logits_for_entire_prompt": False,
        "eos_token_id": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_dt_rank": 256,
        "mamba_expand": 2,
        "mamba_inner_layernorms": True,
        "mamba_proj_bias": False,
        "mm_hidden_size": 1024,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "model_type": "llava_jamba",
        "n_ctx": 262144,
        "num_attention_heads": 32,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "output_router_logits": False,
        "pad_token_id": 0,
        "resamplePooling": "2d",
        "rms_norm_eps": 1e-06,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 40960,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.2",
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mamba_kernels": True,
        "use_mm_proj": True,
        "vocab_size": 65536,
    }
    return config | changes


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_published_config_gives_the_specified_pattern(checkpoint: Path) -> None:
    config = load_model_spec(checkpoint)
    decoder = config.decoder
    attention = [i for i, kind in enumerate(decoder.layer_kinds) if kind == "attention"]
    assert attention == [4, 12, 20, 28]
    assert list(decoder.moe_layers) == list(range(1, 32, 2))
    attends, scans = decoder.attention_layers[4], decoder.mamba_layers[0]
    assert (attends.head_dim, scans.d_inner, scans.conv_state_width) == (128, 8192, 3)
    assert config.num_image_tokens == 144
    assert config.max_positions == 40960


def test_a_single_expert_is_never_routed(checkpoint: Path) -> None:
    write(checkpoint, published(num_experts=1, num_experts_per_tok=1))
    assert not load_model_spec(checkpoint).decoder.moe_layers


@pytest.mark.parametrize(
    "tower",
    [
        "openai/clip-vit-large-patch14-336",
        "./clip/clip_vit_large_patch14_336",
        "/internal/share/clip_vit_large_patch14_336",
    ],
)
def test_all_names_of_the_published_tower_are_known(checkpoint: Path, tower: str) -> None:
    write(checkpoint, published(mm_vision_tower=tower))
    assert load_model_spec(checkpoint).require_vision().num_layers == 24


def test_an_unknown_tower_asks_for_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    write(checkpoint, published(mm_vision_tower="somebody/vit", mm_hidden_size=64))
    with pytest.raises(ConfigError, match=r"'somebody/vit'.*--vision-tower"):
        load_model_spec(checkpoint)
    tower = tmp_path / "tower"
    tower.mkdir()
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    write(tower, {"vision_config": vision})
    config = load_model_spec(checkpoint, vision_tower=tower)
    assert (config.require_vision().hidden_size, config.num_image_tokens) == (64, 4)
    write(tower, {"vision_config": vision | {"hidden_act": "gelu"}})
    assert load_model_spec(checkpoint, vision_tower=tower).require_vision().activation == "gelu"
    write(tower, {"vision_config": vision | {"hidden_act": "gelu_new"}})
    with pytest.raises(
        ConfigError, match="'hidden_act' must be 'quick_gelu' or 'gelu', got 'gelu_new'"
    ):
        load_model_spec(checkpoint, vision_tower=tower)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_act", "gelu", "'hidden_act' must be 'silu', got 'gelu'"),
        ("mamba_inner_layernorms", False, "'mamba_inner_layernorms' must be True"),
        ("tie_word_embeddings", True, "'tie_word_embeddings' must be False"),
        ("mm_vision_select_layer", -1, "'mm_vision_select_layer' must be -2, got -1"),
        ("resamplePooling", "1d", "'resamplePooling' must be '2d', got '1d'"),
        ("sliding_window", 4096, "'sliding_window' must be None"),
        (
            "model_type",
            "llama",
            "this is Llama, text alone (model_type 'llama'); supported: LongLLaVA",
        ),
        ("rope_theta", 1e4, "unknown key 'rope_theta'"),
        ("num_hidden_layers", "32", "'num_hidden_layers' must be a number, got '32'"),
        ("mm_hidden_size", 768, "'mm_hidden_size' is 768, but the vision tower is 1024 wide"),
        ("num_attention_heads", 33, "4096 is not divisible by 33"),
        ("num_experts_per_tok", 17, "num_experts_per_tok 17 exceeds num_experts 16"),
        ("hidden_size", 0, "must be positive: hidden_size=0"),
    ],
)
def test_what_changes_the_mathematics_is_refused(
    checkpoint: Path, key: str, value: object, message: str
) -> None:
    write(checkpoint, published(**{key: value}))
    with pytest.raises(ConfigError) as caught:
        load_model_spec(checkpoint)
    assert message in str(caught.value)


def test_all_problems_are_listed_at_once(checkpoint: Path) -> None:
    config = published(hidden_act="relu", rope_theta=1)
    del config["vocab_size"]
    write(checkpoint, config)
    with pytest.raises(ConfigError) as caught:
        load_model_spec(checkpoint)
    for part in ("missing key 'vocab_size'", "unknown key 'rope_theta'", "'hidden_act' must be"):
        assert part in str(caught.value)


def test_a_missing_pooling_key_is_2d_with_a_warning(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = published()
    del config["resamplePooling"]
    write(checkpoint, config)
    assert load_model_spec(checkpoint).num_image_tokens == 144
    assert "no 'resamplePooling'" in caplog.text


def test_automatic_dt_rank_is_a_sixteenth_of_the_width(checkpoint: Path) -> None:
    write(checkpoint, published(mamba_dt_rank="auto"))
    assert load_model_spec(checkpoint).decoder.mamba_layers[0].dt_rank == 256


@pytest.mark.parametrize("text", [None, "{", "[1]"], ids=["missing", "cut-off", "list"])
def test_an_unreadable_file_is_explained(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model_spec(tmp_path)


def test_what_transformers_writes_by_itself_is_harmless(checkpoint: Path) -> None:
    own = {
        "_attn_implementation_autoset": True,
        "attn_implementation": "eager",
        "delay_load": True,
    }
    plain = load_model_spec(checkpoint)
    write(checkpoint, published(**own))
    assert load_model_spec(checkpoint) == plain


def test_an_unknown_key_can_be_ignored_and_a_known_one_cannot(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(checkpoint, published(my_note="hello"))
    with pytest.raises(ConfigError, match="unknown key 'my_note'"):
        load_model_spec(checkpoint)
    assert load_model_spec(checkpoint, ignored_keys=["my_note"]).decoder.num_layers == 32
    assert "ignoring 'my_note'" in caplog.text
    write(checkpoint, published(hidden_act="gelu"))
    with pytest.raises(ConfigError, match="'hidden_act' must be 'silu'"):
        load_model_spec(checkpoint, ignored_keys=["hidden_act"])


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("llava_onevision", "this is LLaVA-OneVision"),
        ("qwen", "model_type 'qwen' is not known"),
        (None, "'model_type' is missing"),
        (["llava"], "is not known"),
    ],
)
def test_the_family_is_looked_at_first(checkpoint: Path, model_type: object, message: str) -> None:
    write(checkpoint, {"model_type": model_type, "what": "ever"})
    with pytest.raises(ConfigError) as caught:
        load_model_spec(checkpoint)
    assert message in str(caught.value)
    assert "supported: LongLLaVA ('llava_jamba')" in str(caught.value)
    assert "key" not in str(caught.value)


def test_the_decoder_is_read_wherever_the_tower_is(checkpoint: Path) -> None:
    whole = load_model_spec(checkpoint)
    write(checkpoint, published(mm_vision_tower="somewhere/else"))
    assert load_decoder_spec(checkpoint) == whole.decoder


def test_numbers_are_whole_where_they_count(checkpoint: Path) -> None:
    write(checkpoint, published(num_hidden_layers=2.5))
    with pytest.raises(ConfigError, match="'num_hidden_layers' must be a whole number, got 2"):
        load_model_spec(checkpoint)
