"""The reference against code nobody here wrote: transformers' Jamba and CLIP, on random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.transformers_jamba import jamba_from_reference
from longllava_trt.models.clip import clip_config
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.connector import pool_patches
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.operators import TorchOperators

transformers = pytest.importorskip("transformers")

LIMIT = 1e-4


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude expected."""
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 3), (3, 65)])
@torch.no_grad()
def test_decoder_equals_transformers_jamba(model: LongLLaVA, batch: int, length: int) -> None:
    jamba = jamba_from_reference(model)
    ids = torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(1))
    expected = jamba(ids, use_cache=False, output_hidden_states=True)
    output = model.decode(
        model.embed(ids), empty_cache(model.config.decoder, batch=batch), all_logits=True
    )
    assert relative_error(output.logits, expected.logits) <= LIMIT
    # transformers' last hidden state is taken after the final norm
    for layer, hidden in enumerate(output.hidden_states[:-1]):
        assert relative_error(hidden, expected.hidden_states[layer + 1]) <= LIMIT, layer


class RenormalisedRouter(TorchOperators):
    """Behaviour of mlx-lm and mobius: routing weights that sum to one."""

    def sparse_moe(self, x, router_logits, experts, *, top_k):  # type: ignore[no-untyped-def]
        kept = router_logits.softmax(-1).topk(top_k, -1).values.sum(-1, keepdim=True)
        return super().sparse_moe(x, router_logits, experts, top_k=top_k) / kept


class ShiftedConv(TorchOperators):
    """A convolution that sees one step less."""

    def causal_conv(self, u, weight, bias, conv_state):  # type: ignore[no-untyped-def]
        y, state = super().causal_conv(u, weight, bias, conv_state)
        return torch.nn.functional.pad(y, (1, 0))[..., :-1], state


class NoSkip(TorchOperators):
    """A scan without the D skip."""

    def selective_scan(self, inputs):  # type: ignore[no-untyped-def]
        return super().selective_scan(inputs._replace(D=torch.zeros_like(inputs.D)))


class WithRotaryPositions(TorchOperators):
    """Rotary positions, which Jamba has not."""

    def causal_attention(self, q, k, v, state):  # type: ignore[no-untyped-def]
        angle = torch.arange(q.shape[2])[:, None] / 100 ** (torch.arange(q.shape[3] // 2) / 8)
        turn = torch.polar(torch.ones_like(angle), angle)

        def rotate(x: Tensor) -> Tensor:
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * turn).flatten(-2)

        return super().causal_attention(rotate(q), rotate(k), v, state)


@pytest.mark.parametrize("model", [(4, 2)], ids=["moe4"], indirect=True)
@pytest.mark.parametrize("wrong", [RenormalisedRouter, ShiftedConv, NoSkip, WithRotaryPositions])
@torch.no_grad()
def test_comparison_fails_when_the_model_is_wrong(model: LongLLaVA, wrong: type) -> None:
    jamba = jamba_from_reference(model)
    ids = torch.randint(0, 97, (1, 33), generator=torch.Generator().manual_seed(1))
    expected = jamba(ids, use_cache=False).logits
    model.ops = wrong()
    cache = empty_cache(model.config.decoder)
    output = model.decode(model.embed(ids), cache, all_logits=True)
    assert relative_error(output.logits, expected) > 100 * LIMIT


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_errs_no_more_than_transformers(
    model: LongLLaVA, dtype: torch.dtype
) -> None:
    ids = torch.randint(0, 97, (1, 37), generator=torch.Generator().manual_seed(4))
    embeds = model.embed(ids)
    decoder = model.config.decoder
    exact = model.decode(embeds, empty_cache(decoder), all_logits=True).logits
    jamba = jamba_from_reference(model).to(dtype)
    theirs = relative_rms(jamba(inputs_embeds=embeds.to(dtype), use_cache=False).logits, exact)
    # rounding flips experts in near ties, in either code as it falls; a step of the dtype bounds both
    limit = min(1.5 * theirs, 30 * torch.finfo(dtype).eps)
    model.to(dtype)

    def error(ops: TorchOperators) -> float:
        model.ops = ops
        cache = empty_cache(decoder, dtype=dtype, ssm_state_dtype=dtype)
        logits = model.decode(embeds.to(dtype), cache, all_logits=True).logits
        return relative_rms(logits, exact)

    assert error(TorchOperators()) <= limit
    wrong = [ShiftedConv, NoSkip, *[RenormalisedRouter] * bool(decoder.moe_layers)]
    assert min(error(ops()) for ops in wrong) > limit


@torch.no_grad()
def test_vision_tower_equals_transformers_clip(model: LongLLaVA) -> None:
    fields = clip_config(model.config.require_vision())
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**fields)).eval()
    own = model.vision.state_dict()
    prefix = next(iter(clip.state_dict())).split("embeddings.")[0]
    clip.load_state_dict({prefix + key: value for key, value in own.items()}, strict=True)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    expected = clip(pixels, output_hidden_states=True).hidden_states
    features = model.encode_images(pixels)
    assert relative_error(features, expected[-2][:, 1:]) <= LIMIT
    assert relative_error(features, expected[-1][:, 1:]) > 100 * LIMIT


@pytest.mark.parametrize("side", [4, 6, 24])
def test_pooling_equals_bilinear_interpolation_and_average_pooling(side: int) -> None:
    features = torch.randn(2, side * side, 32, generator=torch.Generator().manual_seed(3))
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    pooled = pool_patches(features, patches_per_side=side)
    for expected in (
        F.interpolate(grid, size=(side // 2, side // 2), mode="bilinear", align_corners=False),
        F.avg_pool2d(grid, 2),
    ):
        torch.testing.assert_close(pooled, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)
