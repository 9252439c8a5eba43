"""Choosing the next token from its scores: greedily, or by a seeded draw.

Names and order are those of transformers: repetition penalty, temperature, top-k, top-p. As there,
when a prompt is given as embeddings, the penalty sees the tokens of the answer alone, not those of
the prompt. NumPy only; knows no decoder and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.runtime.option_checks import check, number, whole_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sampler", "SamplingParams", "keep_top_k", "keep_top_p", "penalise_repetition"]

_LEAST_TEMPERATURE = 0.01
"""Below it, scores overflow, and a draw is the greedy choice long before that."""
_LARGEST = 1e30
_PENALTIES = (0.01, 100.0)
"""Beyond them, scores of a good bundle can overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Options for generating an answer; the defaults are the original's only mode."""

    temperature: float = 0.0
    """0 is greedy: always the most likely token. Above 0, tokens are drawn; 1 keeps the model's
    own distribution."""
    top_k: int = 0
    """Number of most likely tokens to draw from; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum; 1 for all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens already in the answer become less likely; 1 changes nothing."""
    seed: int | None = None
    """The same seed gives the same answer on the same machine; None draws a new seed."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these texts."""
    max_new_tokens: int = 768
    """Largest number of tokens."""
    min_new_tokens: int = 1
    """Least number of tokens before the end-of-sequence token; a stop text may end it before."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _as_tuple(self.stop))
        problems = [problem for problem in self._out_of_range() if problem]
        check("sampling", problems or self._contradictions())

    def _out_of_range(self) -> list[str | None]:
        low, penalty = _LEAST_TEMPERATURE, self.repetition_penalty
        temperature = f"0 (greedy) or from {low} up"
        top_p = "above 0 and at most 1"
        positive = f"a positive number from {_PENALTIES[0]} to {_PENALTIES[1]:g}"
        greedy = self.temperature == 0 and not isinstance(self.temperature, bool)
        return [
            None
            if greedy
            else number("temperature", self.temperature, temperature, least=low, most=_LARGEST),
            whole_number("top_k", self.top_k, at_least=0, note=" (all tokens)"),
            number("top_p", self.top_p, top_p, least=5e-324, most=1),
            number(
                "repetition_penalty", penalty, positive, least=_PENALTIES[0], most=_PENALTIES[1]
            ),
            whole_number("seed", self.seed, at_least=0, or_none=True),
            _stop_problem(self.stop),
            whole_number("max_new_tokens", self.max_new_tokens, at_least=1),
            whole_number("min_new_tokens", self.min_new_tokens, at_least=0),
        ]

    def _contradictions(self) -> list[str]:
        found = []
        if self.temperature == 0 and (self.top_k > 0 or self.top_p < 1):
            found.append("top_k and top_p do nothing at temperature 0; raise it, or leave them out")
        if 1 <= self.max_new_tokens < self.min_new_tokens:
            found.append(
                f"min_new_tokens ({self.min_new_tokens}) exceeds max_new_tokens ({self.max_new_tokens})"
            )
        return found


def _as_tuple(stop: object) -> object:
    """Return a list or tuple as a tuple, so that it cannot change; anything else as it is."""
    return tuple(stop) if isinstance(stop, list | tuple) else stop


def _stop_problem(stop: object) -> str | None:
    if isinstance(stop, tuple) and all(isinstance(text, str) and text for text in stop):
        return None
    return f"stop must be a sequence of texts, none of them empty, got {stop!r}"


class Sampler:
    """Chooses tokens one after another; a seeded draw takes one random number for each token.

    Args:
        params: Options for choosing them.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.default_rng(params.seed)

    def choose(self, scores: NDArray[np.float32], answer: Sequence[int]) -> int:
        """Return the next token.

        Args:
            scores: Its logits; not changed. [vocab_size], float32.
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
        # from the right, so that a token of probability 0 is never drawn
        drawn = self._random.random() * cumulative[-1]
        return int(cumulative.searchsorted(drawn, side="right"))


def penalise_repetition(
    scores: NDArray[Any], tokens: Sequence[int], *, penalty: float
) -> NDArray[Any]:
    """Return scores with the penalty applied to ``tokens``.

    Args:
        scores: Logits. [vocab_size], float.
        tokens: Ids that are penalised.
        penalty: Divides positive scores, multiplies negative ones.

    Returns:
        Array like ``scores``.
    """
    penalised = scores.copy()
    chosen = np.unique(np.asarray(tokens, dtype=np.int64))
    values = scores[chosen]
    penalised[chosen] = np.where(values < 0, values * penalty, values / penalty)
    return penalised


def keep_top_k(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """Return scores [vocab_size], float, with all but the ``k`` highest set to -inf.

    Scores equal to the lowest of these stay too.
    """
    k = min(k, scores.size)
    least = np.partition(scores, scores.size - k)[scores.size - k]
    return np.where(scores < least, -np.inf, scores)


def keep_top_p(scores: NDArray[Any], p: float) -> NDArray[Any]:
    """Return scores [vocab_size], float, with the least likely tokens set to -inf.

    The probabilities of these tokens add up to at most ``1 - p``. The most likely token always
    stays.
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
