"""Text-only Jamba: its config.json, its names of tensors, its presets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.models.jamba.presets import PRESETS
from longllava_trt.models.jamba.weights import stacked_tensors, stored_parts, tensor_name
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.models.registry import load_decoder_spec, load_model_spec
from longllava_trt.models.spec import ModelSpec
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint


def read(folder: Path, **keys: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps({"model_type": "jamba", **keys}))
    return load_model_spec(folder)


def test_little_is_filled_with_the_defaults(tmp_path: Path) -> None:
    spec = read(tmp_path)
    decoder = spec.decoder
    assert spec.stages == ("embed", "decoder")
    assert spec.vision is None
    assert list(decoder.attention_layers) == [4, 12, 20, 28]
    assert list(decoder.moe_layers) == list(range(1, 32, 2))
    assert decoder.mamba_layers[0].dt_rank == 256
    total = sum(map(math.prod, parameter_shapes(spec).values()))
    assert total == 51_570_323_328
    assert load_decoder_spec(tmp_path) == decoder


def test_the_3b_is_dense_and_tied(tmp_path: Path) -> None:
    spec = PRESETS["jamba-3b"]
    assert spec.decoder.tie_embeddings
    assert not spec.decoder.moe_layers
    assert (len(spec.decoder.mamba_layers), len(spec.decoder.attention_layers)) == (26, 2)
    assert sum(map(math.prod, parameter_shapes(spec).values())) == 3_029_337_472


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"hidden_act": "gelu"}, "'hidden_act' must be 'silu', got 'gelu'"),
        ({"mamba_proj_bias": True}, "'mamba_proj_bias' must be false, got true"),
        (
            {"sliding_window": 4096},
            "'sliding_window' must be absent, got 4096 (attention within a window is not supported)",
        ),
        (
            {"rope_theta": 1e4},
            "'rope_theta' must be absent, got 10000.0 (the model has no positions)",
        ),
        (
            {"banana": 1, "tie_word_embeddings": "yes"},
            (
                "'tie_word_embeddings' must be true or false, got 'yes'; unknown key 'banana' (its effect on the model "
                "is not known to this version)"
            ),
        ),
        ({"num_experts": 0}, "decoder: must be positive: num_experts=0"),
        ({"num_attention_heads": 33}, "decoder: 4096 is not divisible by 33"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers must be at most 10000, got 1000000000",
        ),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    tmp_path: Path, keys: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **keys)
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {line}"


def test_a_text_model_has_no_tower(tmp_path: Path) -> None:
    read(tmp_path)
    with pytest.raises(InputError, match="a text model has no vision tower"):
        load_model_spec(tmp_path, vision_tower=tmp_path)


def test_stacks_hold_their_experts_in_order() -> None:
    spec = PRESETS["jamba-tiny"]
    stored = stacked_tensors(spec)
    names = [name for key, tensor in stored.items() for name in stored_parts(key, tensor.shape[0])]
    assert sorted(names) == sorted(map(tensor_name, parameter_shapes(spec)))
    key = "model.layers.1.feed_forward.experts.gate_up_proj"
    assert stored[key].shape == (4, 448, 64)
    assert stored_parts(key, 4) == tuple(map(tensor_name, stored[key].paths))


def test_both_layouts_read_back_with_the_same_weights(tmp_path: Path) -> None:
    for name in ("per-expert", "stacked"):
        write_checkpoint(tmp_path / name, preset="jamba-tiny", checkpoint_format=name)
        assert load_model_spec(tmp_path / name) == PRESETS["jamba-tiny"]
    expected = load_model(tmp_path / "per-expert").state_dict()
    found = load_model(tmp_path / "stacked").state_dict()
    assert all(found[name].equal(value) for name, value in expected.items())
