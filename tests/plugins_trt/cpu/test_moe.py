"""The CPU's mixture of experts against a float64 loop: odd sizes, lopsided routing, ties, threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.cpu.lower import lower_for_cpu
from longllava_trt.plugins_trt.spec import SPARSE_MOE

LIMIT = 2e-6

Arrays = dict[str, np.ndarray]
Mixture = Callable[..., np.ndarray]


def arrays_of(tokens: int, experts: int, hidden: int = 70, inner: int = 133) -> Arrays:
    """Sizes that no block divides."""
    rng = np.random.default_rng(tokens + experts)
    shapes = {
        "x": (tokens, hidden),
        "router_logits": (tokens, experts),
        "gate_up": (experts, 2 * inner, hidden),
        "down": (experts, hidden, inner),
    }
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


@pytest.fixture(scope="module")
def mixture(one_operator_model: Any, run_poisoned: Any) -> Mixture:
    """The kernel as ONNX Runtime calls it, into an output full of NaN."""

    def run(arrays: Arrays, top_k: int, *, threads: int = 2) -> np.ndarray:
        model = lower_for_cpu(one_operator_model(SPARSE_MOE, top_k=top_k))
        (y,) = run_poisoned(model, arrays, {"y": arrays["x"].shape}, threads=threads)
        return np.asarray(y)

    return run


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 65, 300], ids=lambda n: f"tokens{n}")
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 1), (4, 2), (16, 2), (5, 5)], ids=str)
def test_mixture_equals_a_float64_loop(
    tokens: int, experts: int, top_k: int, mixture: Mixture, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = arrays_of(tokens, experts)
    assert relative_rms(mixture(arrays, top_k), moe_oracle(arrays, top_k)) <= LIMIT


@pytest.mark.parametrize("lost", ["renormalise", "swap"])
def test_comparison_fails_when_it_should(
    lost: str, mixture: Mixture, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = arrays_of(65, 4)
    y = mixture(arrays, 2)
    if lost == "swap":
        arrays["gate_up"] = np.roll(arrays["gate_up"], 133, axis=1)
    expected = moe_oracle(arrays, 2, renormalise=lost == "renormalise")
    assert relative_rms(y, expected) > 1000 * LIMIT


def test_no_token_at_all(mixture: Mixture) -> None:
    assert mixture(arrays_of(0, 4), 2).shape == (0, 70)


def test_one_expert_takes_all(mixture: Mixture, moe_oracle: Any, relative_rms: Any) -> None:
    arrays = arrays_of(600, 4)
    arrays["router_logits"][:, 2] += 30
    assert relative_rms(mixture(arrays, 1), moe_oracle(arrays, 1)) <= LIMIT


def test_of_equal_experts_the_first_are_taken(
    mixture: Mixture, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = arrays_of(9, 4)
    arrays["router_logits"][:] = 0.25
    assert relative_rms(mixture(arrays, 2), moe_oracle(arrays, 2)) <= LIMIT


def test_far_apart_logits_do_not_overflow(
    mixture: Mixture, moe_oracle: Any, relative_rms: Any
) -> None:
    arrays = arrays_of(9, 4)
    arrays["router_logits"] *= 1e4
    assert relative_rms(mixture(arrays, 2), moe_oracle(arrays, 2)) <= LIMIT


@pytest.mark.parametrize("threads", [1, 3, 8], ids=lambda n: f"threads{n}")
def test_bits_do_not_depend_on_threads(threads: int, mixture: Mixture) -> None:
    arrays = arrays_of(300, 4)
    np.testing.assert_array_equal(mixture(arrays, 2, threads=threads), mixture(arrays, 2))


def test_parts_of_a_prompt_give_what_the_whole_gives(mixture: Mixture, relative_rms: Any) -> None:
    arrays = arrays_of(300, 4)
    whole = mixture(arrays, 2)
    for begin, end in ((0, 1), (1, 8), (8, 300)):
        part = {n: a[begin:end] if n in ("x", "router_logits") else a for n, a in arrays.items()}
        assert relative_rms(mixture(part, 2), whole[begin:end]) <= LIMIT


@pytest.mark.parametrize("top_k", [0, 5])
def test_impossible_numbers_of_experts_are_refused(top_k: int, mixture: Mixture) -> None:
    with pytest.raises(Exception, match="top_k must be from 1"):
        mixture(arrays_of(3, 4), top_k)
