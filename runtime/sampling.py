"""Choosing the next token from its scores: greedily, or by a seeded draw.

Names and order are those of transformers: repetition penalty, temperature, top-k, top-p. As there, when a prompt is
given as embeddings, the penalty sees the tokens of the answer alone, not those of the prompt. NumPy only; knows no
decoder and no text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sampler", "SamplingParams", "keep_top_k", "keep_top_p", "penalise_repetition"]

_LEAST_TEMPERATURE = 0.01
"""Below it, scores overflow long before the draw differs from the greedy choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How an answer is generated; the defaults are the original's only mode."""

    temperature: float = 0.0
    """0 is greedy: always the most likely token. Above it, tokens are drawn; 1 is the model's own distribution."""
    top_k: int = 0
    """Draw from this many most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum; 1 for all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens already in the answer become less likely; 1 leaves them."""
    seed: int | None = None
    """The same seed gives the same answer on the same machine; None draws a fresh one."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these texts."""
    max_new_tokens: int = 768
    """At most so many tokens."""
    min_new_tokens: int = 1
    """The end-of-sequence token is forbidden before so many; a stop text is not."""

    def __post_init__(self) -> None:
        problems = [*self._out_of_range(), *self._contradictions()]
        if problems:
            raise InputError("sampling: " + "; ".join(problems))

    def _out_of_range(self) -> list[str]:
        low = _LEAST_TEMPERATURE
        checks = {
            f"temperature must be 0 (greedy) or from {low} up, got {self.temperature}": (
                self.temperature == 0 or low <= self.temperature < math.inf
            ),
            f"top_k must be at least 0 (all tokens), got {self.top_k}": self.top_k >= 0,
            f"top_p must be above 0 and at most 1, got {self.top_p}": 0 < self.top_p <= 1,
            f"repetition_penalty must be a positive number, got {self.repetition_penalty}": (
                0 < self.repetition_penalty < math.inf
            ),
            f"seed must be at least 0, got {self.seed}": self.seed is None or self.seed >= 0,
            "stop must be a sequence of texts, none of them empty": (
                not isinstance(self.stop, str) and all(self.stop)
            ),
            f"max_new_tokens must be at least 1, got {self.max_new_tokens}": (
                self.max_new_tokens >= 1
            ),
            f"min_new_tokens must be at least 0, got {self.min_new_tokens}": (
                self.min_new_tokens >= 0
            ),
        }
        return [problem for problem, holds in checks.items() if not holds]

    def _contradictions(self) -> list[str]:
        found = []
        if self.temperature == 0 and (self.top_k > 0 or self.top_p < 1):
            found.append("top_k and top_p do nothing at temperature 0; raise it, or leave them out")
        if 1 <= self.max_new_tokens < self.min_new_tokens:
            found.append(
                f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({self.max_new_tokens})"
            )
        return found


class Sampler:
    """Chooses tokens one after another; a seeded draw takes one random number a token.

    Args:
        params: How to choose.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)

    def choose(self, scores: NDArray[np.float32], answer: Sequence[int]) -> int:
        """Return the next token.

        Args:
            scores: Its logits; not changed. [vocab_size].
            answer: The tokens already chosen.
        """
        params = self._params
        if params.repetition_penalty != 1:
            scores = penalise_repetition(scores, answer, penalty=params.repetition_penalty)
        if params.temperature == 0:
            return int(scores.argmax())
        warped = scores.astype(np.float64) / params.temperature
        if params.top_k > 0:
            warped = keep_top_k(warped, params.top_k)
        if params.top_p < 1:
            warped = keep_top_p(warped, params.top_p)
        cumulative = _softmax(warped).cumsum()
        # from the right, so that a token of probability 0 has no interval to be hit
        drawn = self._random.random() * cumulative[-1]
        return int(cumulative.searchsorted(drawn, side="right"))


def penalise_repetition(
    scores: NDArray[Any], tokens: Sequence[int], *, penalty: float
) -> NDArray[Any]:
    """Return scores in which those of ``tokens`` are divided by the penalty, or multiplied where negative."""
    penalised = scores.copy()
    chosen = np.unique(np.asarray(tokens, dtype=np.int64))
    values = scores[chosen]
    penalised[chosen] = np.where(values < 0, values * penalty, values / penalty)
    return penalised


def keep_top_k(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """Return scores with all but the ``k`` highest at -inf; those equal to the lowest kept stay too."""
    k = min(k, scores.size)
    least = np.partition(scores, scores.size - k)[scores.size - k]
    return np.where(scores < least, -np.inf, scores)


def keep_top_p(scores: NDArray[Any], p: float) -> NDArray[Any]:
    """Return scores with the least likely at -inf whose probabilities together do not exceed ``1 - p``.

    The most likely always stays.
    """
    ascending = scores.argsort(kind="stable")
    dropped = _softmax(scores)[ascending].cumsum() <= 1 - p
    dropped[-1] = False
    kept = scores.copy()
    kept[ascending[dropped]] = -np.inf
    return kept


def _softmax(scores: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum())
