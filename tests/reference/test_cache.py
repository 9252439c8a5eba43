"""Whole prompt == chunks of any size == token by token."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longllava_trt.reference.cache import HybridCache, MambaState, empty_cache
from longllava_trt.reference.model import LongLLaVA
from tests.reference.conftest import randomise, small_config

LIMIT = 1e-5
LENGTH = 37


def run(model: LongLLaVA, embeds: Tensor, sizes: list[int]) -> tuple[Tensor, HybridCache]:
    """Feed a prompt in pieces; returns the logits at every position."""
    cache = empty_cache(model.config.decoder, batch=embeds.shape[0], dtype=embeds.dtype)
    logits = []
    for piece in embeds.split(sizes, dim=1):
        output = model.decode(piece, cache, all_logits=True)
        logits.append(output.logits)
        cache = output.cache
    return torch.cat(logits, dim=1), cache


def prompt(model: LongLLaVA, *, batch: int) -> Tensor:
    ids = torch.randint(0, 97, (batch, LENGTH), generator=torch.Generator().manual_seed(4))
    return model.embed(ids)


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_token_by_token_equals_whole_prompt(model: LongLLaVA, batch: int) -> None:
    embeds = prompt(model, batch=batch)
    whole, cache = run(model, embeds, [LENGTH])
    steps, step_cache = run(model, embeds, [1] * LENGTH)
    assert relative_rms(steps, whole) <= LIMIT
    for one, other in zip(cache, step_cache, strict=True):
        for a, b in zip(one, other, strict=True):
            assert relative_rms(b, a) <= LIMIT


@given(cuts=st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=6).map(sorted))
@settings(max_examples=25, deadline=None)
def test_random_splits_equal_whole_prompt(cuts: list[int]) -> None:
    model = LongLLaVA(small_config()).eval().requires_grad_(False)
    randomise(model)
    embeds = prompt(model, batch=1)
    bounds = [0, *cuts, LENGTH]
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    whole, _ = run(model, embeds, [LENGTH])
    pieces, _ = run(model, embeds, sizes)
    assert relative_rms(pieces, whole) <= LIMIT


@torch.no_grad()
def test_resetting_the_ssm_state_between_chunks_is_noticed(model: LongLLaVA) -> None:
    embeds = prompt(model, batch=1)
    whole, _ = run(model, embeds, [LENGTH])
    first = model.decode(embeds[:, :20], empty_cache(model.config.decoder))
    forgotten = tuple(
        s._replace(recurrent_state=torch.zeros_like(s.recurrent_state))
        if isinstance(s, MambaState)
        else s
        for s in first.cache
    )
    rest = model.decode(embeds[:, 20:], forgotten, all_logits=True)
    assert relative_rms(rest.logits, whole[:, 20:]) > 1000 * LIMIT


@torch.no_grad()
def test_a_call_leaves_the_cache_it_was_given_alone(model: LongLLaVA) -> None:
    embeds = prompt(model, batch=1)
    cache = model.decode(embeds, empty_cache(model.config.decoder)).cache
    before = [t.clone() for state in cache for t in state]
    model.decode(embeds[:, :5], cache)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (t for s in cache for t in s), strict=True)
    )


@torch.no_grad()
def test_rows_of_a_batch_are_independent(model: LongLLaVA) -> None:
    embeds = prompt(model, batch=3)
    together, _ = run(model, embeds, [LENGTH])
    alone, _ = run(model, embeds[1:2], [LENGTH])
    assert relative_rms(together[1:2], alone) <= LIMIT


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@torch.no_grad()
def test_recurrent_states_are_kept_in_the_dtype_asked_for(
    model: LongLLaVA, kept: torch.dtype
) -> None:
    model.to(torch.bfloat16)
    cache = empty_cache(model.config.decoder, dtype=torch.bfloat16, ssm_state_dtype=kept)
    output = model.decode(prompt(model, batch=1), cache)
    states = [s for s in output.cache if isinstance(s, MambaState)]
    assert {s.recurrent_state.dtype for s in states} == {kept}
    assert {s.conv_state.dtype for s in states} == {torch.bfloat16}
