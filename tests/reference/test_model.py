"""The published models, counted on the meta device; and checkpoints loaded strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longllava_trt.core.errors import CheckpointError
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.models.parameters import parameter_shapes
from longllava_trt.models.registry import load_model_spec
from longllava_trt.models.spec import ModelSpec
from longllava_trt.models.tensors import expected_tensors
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.model import LongLLaVA

B9, A13B = PRESETS["9b"], PRESETS["53b"]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "total", "llm", "tensors"),
    [(B9, 9_615_177_600, 9_290_690_432, 910), (A13B, 51_894_810_496, 51_570_323_328, 1646)],
    ids=["9b", "53b"],
)
def test_published_parameter_counts(config: ModelSpec, total: int, llm: int, tensors: int) -> None:
    model = LongLLaVA.on_meta(config)
    assert count(model) == total
    assert len(list(model.parameters())) == tensors
    assert count(model.vision) == 303_507_456
    assert count(model.projector) == 20_979_712
    assert total - 303_507_456 - 20_979_712 == llm
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == parameter_shapes(config)
    assert {n: tuple(t.shape) for n, t in model.named_tensors().items()} == expected_tensors(config)


def test_published_parts_have_the_specified_sizes() -> None:
    model = LongLLaVA.on_meta(A13B)
    for name, size in {
        "0.mamba": 105_308_448,
        "4.attention": 41_943_040,
        "0.feed_forward": 176_160_768,
        "1.feed_forward.router": 65_536,
    }.items():
        assert count(model.get_submodule(f"layers.{name}")) == size
    active = 51_570_323_328 - 16 * 14 * 176_160_768
    assert active == 12_110_311_296


def test_loaded_weights_are_the_files(tiny_checkpoint: Path) -> None:
    state = load_model(tiny_checkpoint).named_tensors()
    stored: dict[str, torch.Tensor] = {}
    for shard in tiny_checkpoint.glob("*.safetensors"):
        stored |= load_file(shard)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loading_casts_once(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    exact = load_model(tiny_checkpoint).state_dict()
    cast = load_model(tiny_checkpoint, dtype=dtype).state_dict()
    assert all(torch.equal(cast[name], value.to(dtype)) for name, value in exact.items())


def test_every_difference_is_listed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for shard in tiny_checkpoint.glob("*.safetensors"):
        tensors |= load_file(shard)
    tensors["model.layers.9.extra"] = torch.zeros(1)
    tensors["model.layers.0.mamba.D"] = torch.zeros(3)
    del tensors["lm_head.weight"], tensors["model.layers.1.moe.router.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    (tmp_path / "vision_tower").symlink_to(tiny_checkpoint / "vision_tower")
    assert load_model_spec(tmp_path) == load_model_spec(tiny_checkpoint)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    for name in ("extra", "mamba.D", "lm_head.weight", "layers.1.moe.router.weight"):
        assert name in str(caught.value)
