"""Choosing tokens: against transformers' processors, against the distribution, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.sampling import (
    Sampler,
    SamplingParams,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOCAB = 997
NUM_DRAWS = 4000


def random_scores(seed: int, size: int = VOCAB) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 3, size)


def oracle(
    scores: NDArray[Any], answer: list[int], *processors: LogitsProcessor
) -> NDArray[np.float64]:
    ids = torch.LongTensor([answer])
    return np.asarray(LogitsProcessorList(processors)(ids, torch.DoubleTensor(scores)[None])[0])


@pytest.mark.parametrize("penalty", [0.7, 1.3, 9.0])
def test_penalty_is_that_of_transformers(penalty: float) -> None:
    scores, answer = random_scores(1), [3, 996, 3, 0, 41]
    expected = oracle(scores, answer, RepetitionPenaltyLogitsProcessor(penalty))
    np.testing.assert_array_equal(penalise_repetition(scores, answer, penalty=penalty), expected)


def test_penalty_of_an_empty_answer_changes_nothing() -> None:
    scores = random_scores(1)
    np.testing.assert_array_equal(penalise_repetition(scores, [], penalty=2), scores)


@pytest.mark.parametrize("k", [1, 2, 63, VOCAB, VOCAB + 5])
def test_top_k_is_that_of_transformers(k: int) -> None:
    scores = random_scores(2)
    np.testing.assert_array_equal(keep_top_k(scores, k), oracle(scores, [], TopKLogitsWarper(k)))


def test_top_k_keeps_ties_as_transformers_does() -> None:
    scores = np.array([1.0, 5.0, 3.0, 3.0, 3.0, -1.0])
    kept = keep_top_k(scores, 2)
    np.testing.assert_array_equal(kept, oracle(scores, [], TopKLogitsWarper(2)))
    assert np.isfinite(kept).sum() == 4


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_top_p_is_that_of_transformers(p: float, seed: int) -> None:
    scores = random_scores(seed)
    np.testing.assert_array_equal(keep_top_p(scores, p), oracle(scores, [], TopPLogitsWarper(p)))


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    scores = np.log(np.array([0.15, 0.5, 0.05, 0.3]))
    assert np.isfinite(keep_top_p(scores, 0.79)).tolist() == [False, True, False, True]
    assert np.isfinite(keep_top_p(scores, 0.81)).tolist() == [True, True, False, True]


FILTERS = SamplingParams(
    temperature=0.7, top_k=9, top_p=0.8, repetition_penalty=1.4, seed=11, max_new_tokens=4
)


def expected_distribution(
    scores: NDArray[np.float32], answer: list[int], *, temperature: float
) -> NDArray[np.float64]:
    warped = oracle(
        scores.astype(np.float64),
        answer,
        RepetitionPenaltyLogitsProcessor(1.4),
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(9),
        TopPLogitsWarper(0.8),
    )
    exponentials = np.exp(warped - warped.max())
    return np.asarray(exponentials / exponentials.sum())


def chi_square(counts: Counter[int], expected: NDArray[np.float64]) -> float:
    possible = np.flatnonzero(expected).tolist()
    seen = np.array([counts[i] for i in possible])
    wanted = expected[possible] * NUM_DRAWS
    return float(((seen - wanted) ** 2 / wanted).sum())


@pytest.fixture(scope="module")
def draws() -> tuple[Counter[int], NDArray[np.float32], list[int]]:
    scores = random_scores(6, 50).astype(np.float32)
    answer = [int(scores.argmax())]
    sampler = Sampler(FILTERS)
    return Counter(sampler.choose(scores, answer) for _ in range(NUM_DRAWS)), scores, answer


def test_draws_follow_the_distribution_of_transformers_processors(
    draws: tuple[Counter[int], NDArray[np.float32], list[int]],
) -> None:
    counts, scores, answer = draws
    expected = expected_distribution(scores, answer, temperature=0.7)
    assert set(counts) <= set(np.flatnonzero(expected).tolist())
    freedom = np.count_nonzero(expected) - 1
    assert freedom >= 2
    # 1 in 10,000 at these degrees of freedom lies higher
    assert chi_square(counts, expected) < freedom + 4 * (2 * freedom) ** 0.5 + 8


@pytest.mark.parametrize("change", ["temperature", "penalty"])
def test_the_comparison_of_distributions_can_fail(
    change: str, draws: tuple[Counter[int], NDArray[np.float32], list[int]]
) -> None:
    counts, scores, answer = draws
    wrong = expected_distribution(
        scores,
        [] if change == "penalty" else answer,
        temperature=0.8 if change == "temperature" else 0.7,
    )
    freedom = np.count_nonzero(wrong) - 1
    outside = set(counts) - set(np.flatnonzero(wrong).tolist())
    assert outside or chi_square(counts, wrong) > freedom + 4 * (2 * freedom) ** 0.5 + 8


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    scores = random_scores(7).astype(np.float32)

    def drawn(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.choose(scores, []) for _ in range(20)]

    assert drawn(5) == drawn(5) != drawn(6)
    assert drawn(None) != drawn(None)


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = np.array([-np.inf, 0, -np.inf, 0, -np.inf], dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=50.0, seed=1))
    assert {sampler.choose(scores, []) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("temperature", [0.01, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    scores = np.array([3e4, -3e4, 2e4], dtype=np.float32)
    assert Sampler(SamplingParams(temperature=temperature, seed=0)).choose(scores, []) in {0, 1, 2}


def test_greedy_takes_the_first_of_equals_and_changes_nothing() -> None:
    scores = np.array([0, 2, 2, 1], dtype=np.float32)
    before = scores.copy()
    assert Sampler(SamplingParams()).choose(scores, [1]) == 1
    assert Sampler(SamplingParams(repetition_penalty=1.1)).choose(scores, [1]) == 2
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": 1e-9}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": 1.0, "top_k": -1}, "top_k must be at least 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a positive"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be a positive"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"stop": "end"}, "stop must be a sequence"),
        ({"stop": ["end", ""]}, "none of them empty"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "exceeds max_new_tokens"),
        ({"top_p": 0.9}, "do nothing at temperature 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_parameters_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingParams(**options)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError, match=r"temperature .*top_p .*seed "):
        SamplingParams(temperature=-1, top_p=2, seed=-3)
