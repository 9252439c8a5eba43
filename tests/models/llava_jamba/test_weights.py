"""The tensor table against the published counts, and both namings."""

import math

import pytest

from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.llava_jamba.weights import canonical_name, is_tolerated, stored_parts
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import expected_tensors

CONFIG_9B, CONFIG_53B = PRESETS["9b"], PRESETS["53b"]
DECODER_9B = CONFIG_9B.decoder


@pytest.mark.parametrize(
    ("config", "part", "tensors", "parameters"),
    [
        (CONFIG_9B, "", 910, 9_615_177_600),
        (CONFIG_53B, "", 1646, 51_894_810_496),
        (CONFIG_9B, "vision_tower", 391, 303_507_456),
        (CONFIG_9B, "mm_projector", 4, 20_979_712),
        (CONFIG_9B, ".mamba.", 28 * 12, 2_948_636_544),
        (CONFIG_9B, "model.layers.4.self_attn.", 4, 41_943_040),
        (CONFIG_53B, "moe.router", 16, 16 * 65_536),
    ],
    ids=["9b", "53b", "vision", "projector", "mamba", "attention", "router"],
)
def test_expected_tensors_give_the_published_counts(
    config: ModelSpec, part: str, tensors: int, parameters: int
) -> None:
    sizes = [math.prod(s) for name, s in expected_tensors(config).items() if part in name]
    assert (len(sizes), sum(sizes)) == (tensors, parameters)


def test_expected_tensors_places_mixers_and_routers_by_layer() -> None:
    names = expected_tensors(CONFIG_53B)
    attention = {i for i in range(32) if f"model.layers.{i}.self_attn.q_proj.weight" in names}
    routed = {i for i in range(32) if f"model.layers.{i}.moe.router.weight" in names}
    assert attention == {4, 12, 20, 28}
    assert routed == set(range(1, 32, 2))
    assert "model.layers.0.moe.experts.0.gate_proj.weight" in names
    assert "model.layers.0.moe.experts.1.gate_proj.weight" not in names
    assert not any("router" in name for name in expected_tensors(CONFIG_9B))


LAYER = "model.layers.3."
TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("pre_ff_layernorm.weight", "pre_moe_layernorm.weight"),
        ("mamba.b_layernorm.weight", "mamba.B_layernorm.weight"),
        ("mamba.c_layernorm.weight", "mamba.C_layernorm.weight"),
        ("mamba.dt_layernorm.weight", "mamba.dt_layernorm.weight"),
        ("feed_forward.gate_proj.weight", "moe.experts.0.gate_proj.weight"),
        ("feed_forward.down_proj.weight", "moe.experts.0.down_proj.weight"),
        ("feed_forward.router.weight", "moe.router.weight"),
        ("feed_forward.experts.11.up_proj.weight", "moe.experts.11.up_proj.weight"),
    ],
)
def test_canonical_name_maps_transformers_decoder_keys(key: str, canonical: str) -> None:
    assert canonical_name(LAYER + key) == LAYER + canonical


@pytest.mark.parametrize("prefix", ["", "vision_model.", "vision_tower.vision_model.", TOWER])
@pytest.mark.parametrize(
    "key",
    [
        "embeddings.class_embedding",
        "pre_layrnorm.weight",
        "encoder.layers.0.mlp.fc1.bias",
        "post_layernorm.bias",
    ],
)
def test_canonical_name_maps_any_vision_prefix(prefix: str, key: str) -> None:
    assert canonical_name(prefix + key) == TOWER + key


def test_canonical_name_leaves_original_and_foreign_names_alone() -> None:
    foreign = ["text_model.encoder.layers.0.mlp.fc1.bias", "logit_scale", "model.norm.weight"]
    for name in [*expected_tensors(CONFIG_53B), *foreign]:
        assert canonical_name(name) == name


def test_stored_parts_of_packed_experts_are_in_storage_order() -> None:
    assert stored_parts(LAYER + "feed_forward.experts.gate_up_proj", 2) == tuple(
        f"{LAYER}moe.experts.{part}_proj.weight" for part in ("0.gate", "0.up", "1.gate", "1.up")
    )
    assert stored_parts(LAYER + "feed_forward.experts.down_proj", 2) == tuple(
        f"{LAYER}moe.experts.{expert}.down_proj.weight" for expert in range(2)
    )
    assert stored_parts("lm_head.weight", 512) == ("lm_head.weight",)


def test_only_position_ids_are_tolerated() -> None:
    assert is_tolerated("vision_model.embeddings.position_ids")
    assert not is_tolerated("vision_model.embeddings.position_embedding.weight")
