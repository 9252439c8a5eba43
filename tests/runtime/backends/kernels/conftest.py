"""A small model with every kind of layer, in the reference and on our kernels, and the kernels' plain versions in their place.

Triton's interpreter takes seconds for a step. So wiring, states and batches are tested with the plain versions, which are plain PyTorch;
the kernels themselves run in `test_on_triton.py`, and each by itself in `tests/plugins_trt/kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from longllava_trt.core.stage_spec import StageSpec
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.llava_jamba.config import model_from_keys
from longllava_trt.models.parameters import expert_path, packed_experts_path
from longllava_trt.models.registry import family_of, find_preset
from longllava_trt.models.spec import DecoderSpec, ModelSpec
from longllava_trt.plugins_trt.kernels.sparse_moe_formats import (
    dequantise_int4,
    dequantise_int8,
    quantise_int4,
    quantise_int8,
)
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.model import LongLLaVA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder

_PATTERN = {
    "num_hidden_layers": 3,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 0,
}
"""Mamba and experts, attention and dense, Mamba and experts."""

FORMATS: dict[MoeQuant, Any] = {
    "w8a16": (quantise_int8, dequantise_int8),
    "w4a16": (quantise_int4, dequantise_int4),
}


@dataclass(frozen=True)
class Small:
    """The same model twice."""

    reference: LongLLaVA
    config: DecoderSpec
    spec: StageSpec
    decoder: KernelsDecoder

    def embeds(self, batch: int, length: int, *, seed: int = 0) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        shape = (batch, length, self.config.hidden_size)
        return rng.standard_normal(shape).astype(np.float32)

    def want(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the reference's scores after every position of one sequence. [seq_len, vocab_size]."""
        with torch.no_grad():
            output = self.reference.decode(
                torch.from_numpy(embeds), empty_cache(self.config), all_logits=True
            )
        logits: NDArray[np.float32] = output.logits[0].numpy()
        return logits


def small_config(**changes: int) -> ModelSpec:
    tiny = find_preset("tiny")
    return model_from_keys({**tiny.source, **_PATTERN, **changes}, tiny.require_vision())


def random_reference(config: ModelSpec) -> LongLLaVA:
    """Return the reference with random parameters of a model's usual sizes."""
    model = LongLLaVA(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", ".D")):
            parameter.normal_(1, 0.1, generator=generator)
        elif name.endswith("A_log"):
            parameter.uniform_(0, 2, generator=generator)
        elif name.endswith("dt_proj.bias"):
            parameter.uniform_(-4, 0, generator=generator)
        else:
            fan_in = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
            parameter.normal_(0, fan_in**-0.5, generator=generator)
    return model


def quantise_reference(model: LongLLaVA, quant: MoeQuant) -> dict[str, torch.Tensor]:
    """Return the experts' codes and scales, and put what they stand for into the reference."""
    pack, unpack = FORMATS[quant]
    found = {}
    tensors, name_of = model.named_tensors(), family_of(model.config).tensor_name
    for layer, spec in model.config.decoder.moe_layers.items():
        for matrix, kinds in (("gate_up", ("gate", "up")), ("down", ("down",))):
            parts = [
                [tensors[name_of(expert_path(layer, expert, kind))] for kind in kinds]
                for expert in range(spec.num_experts)
            ]
            codes, scales = pack(torch.stack([torch.cat(p) for p in parts]).numpy())
            path = packed_experts_path(layer, matrix)
            found[name_of(path)] = torch.from_numpy(codes)
            found[name_of(f"{path}_scales")] = torch.from_numpy(scales)
            for own, rows in zip(parts, torch.from_numpy(unpack(codes, scales)), strict=True):
                for weight, kept in zip(own, rows.split(own[0].shape[0]), strict=True):
                    weight.copy_(kept)
    return found


def build_small(quant: MoeQuant = "none", **changes: int) -> Small:
    from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
    from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel
    from longllava_trt.runtime.backends.kernels.device import DeviceStream, torch_dtype
    from longllava_trt.runtime.backends.kernels.weight_plan import plan_decoder

    config = small_config(**changes)
    reference = random_reference(config)
    tensors = dict(reference.named_tensors())
    if quant != "none":
        tensors |= quantise_reference(reference, quant)
    weights = {
        w.name: torch.cat([tensors[part].flatten() for part in w.parts])
        .to(torch_dtype(w.dtype))
        .view(w.shape)
        for w in plan_decoder(config, "float32", quant)
    }
    spec = stage_specs(config, "float32")["decoder"]
    decoder = KernelsDecoder(
        DecoderModel.of(config.decoder, weights), spec, DeviceStream(torch.device("cpu"))
    )
    return Small(reference, config.decoder, spec, decoder)


@pytest.fixture(scope="session")
def small() -> Small:
    return build_small()


@pytest.fixture(scope="session")
def make_small() -> Callable[..., Small]:
    return build_small


@pytest.fixture
def plain_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plain versions in the kernels' places."""
    from longllava_trt.plugins_trt.kernels import naive
    from longllava_trt.plugins_trt.kernels.cached_attention_naive import naive_cached_attention
    from longllava_trt.plugins_trt.kernels.sparse_moe_naive import naive_sparse_moe
    from longllava_trt.runtime.backends.kernels import decoder_model, stages

    def conv(*inputs: Any, present_state: Any) -> Any:
        y, state = naive.naive_causal_conv(*inputs)
        return y, present_state.copy_(state)

    def scan(*inputs: Any, state_out: Any) -> Any:
        y, state = naive.naive_selective_scan(*inputs)
        return y, state_out.copy_(state)

    def mamba(*inputs: Any, eps: float, state_out: Any) -> Any:
        y, state = naive.naive_mamba_scan(*inputs, eps=eps)
        return y, state_out.copy_(state)

    replaced = {
        "causal_conv": conv,
        "selective_scan": scan,
        "mamba_scan": mamba,
        "rms_norm": naive.naive_rms_norm,
        "rms_norms_of_dt_b_c": naive.naive_rms_norms_of_dt_b_c,
        "apply_swiglu": naive.naive_swiglu,
        "sparse_moe": naive_sparse_moe,
        "cached_attention": naive_cached_attention,
    }
    for name, twin in replaced.items():
        monkeypatch.setattr(decoder_model, name, twin)
    monkeypatch.setattr(stages, "apply_quick_gelu", naive.naive_quick_gelu)
