"""Weights: from a checkpoint's files to fused tensors, and random ones that a model can run on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longllava_trt.core.errors import ManifestError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.weight_formats import MOE_QUANTS, MoeQuant
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.parameters import EMBEDDING, decoder_parameters
from longllava_trt.models.registry import family_of, find_preset, load_model_spec
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.runtime.backends.kernels.weight_plan import (
    plan_decoder,
    plan_stage,
    total_bytes,
)
from tests.runtime.backends.kernels.conftest import small_config


def cpu() -> Any:
    from longllava_trt.runtime.backends.kernels.device import DeviceStream

    return DeviceStream(torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["vision", "projector", "embed", "decoder"])
def test_fused_tensors_are_the_checkpoints_put_together(
    tiny_bundle: Path, tiny_checkpoint: Path, stage: str, dtype: str
) -> None:
    from longllava_trt.runtime.backends.kernels.weights import load_fused

    config = load_model_spec(tiny_checkpoint)
    plan = (
        plan_decoder(config, dtype, "none")
        if stage == "decoder"
        else plan_stage(stage, config, dtype)
    )
    loaded = load_fused(tiny_bundle, Manifest.load(tiny_bundle).weights, plan, cpu())
    tensors = load_model(tiny_checkpoint).named_tensors()
    assert sum(t.nbytes for t in loaded.values()) == total_bytes(plan)
    for weight in plan:
        want = torch.cat([tensors[part].flatten() for part in weight.parts])
        assert loaded[weight.name].shape == weight.shape
        assert (loaded[weight.name].flatten() == want.to(loaded[weight.name].dtype)).all(), weight


def test_a_bundle_without_a_weight_is_refused(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    from longllava_trt.runtime.backends.kernels.weights import load_fused

    plan = plan_decoder(load_model_spec(tiny_checkpoint), "float32", "w8a16")
    records = Manifest.load(tiny_bundle).weights
    with pytest.raises(
        ManifestError, match=r"lacks 16 weights .* 'model\.layers\.1\.moe\.experts\.down'"
    ):
        load_fused(tiny_bundle, records, plan, cpu())


@pytest.mark.parametrize("preset", ["9b", "53b"])
def test_published_sizes_have_every_tensor_of_the_decoder_once(preset: str) -> None:
    config = find_preset(preset)
    plan = plan_decoder(config, "bfloat16", "none")
    name = family_of(config).tensor_name
    shapes = {
        name(path): shape
        for path, shape in decoder_parameters(config.decoder).items()
        if path != EMBEDDING
    }
    assert sorted(part for weight in plan for part in weight.parts) == sorted(shapes)
    assert total_bytes(plan) == sum(2 * math.prod(shape) for shape in shapes.values())
    if preset == "53b":
        int8 = total_bytes(plan_decoder(config, "bfloat16", "w8a16"))
        assert 0.5 < int8 / total_bytes(plan) < 0.6


@pytest.mark.parametrize("quant", MOE_QUANTS)
@pytest.mark.usefixtures("plain_versions")
def test_a_model_runs_on_random_weights(quant: MoeQuant) -> None:
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel
    from longllava_trt.runtime.backends.kernels.weights import random_weights

    config = small_config(hidden_size=128, intermediate_size=256)
    spec = stage_specs(config, "bfloat16")["decoder"]
    plan = plan_decoder(config, "bfloat16", quant)
    weights = random_weights(plan, cpu(), seed=1)
    again = random_weights(plan, cpu(), seed=1)
    assert all((weights[name] == again[name]).all() for name in weights)
    for weight in plan:
        assert (tuple(weights[weight.name].shape), str(weights[weight.name].dtype)[6:]) == (
            weight.shape,
            weight.dtype,
        )
    decoder = KernelsDecoder(DecoderModel.of(config.decoder, weights), spec, cpu())
    with decoder.stream.active():
        x = torch.randn(1, 9, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
        logits = decoder.feed(x, [decoder.new_state(capacity=9)]).numpy()
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10, (
        "no weight format is so large or small that it drowns the others"
    )
