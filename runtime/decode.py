"""The decoding loop: scores to a token, the token to the next scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.core.errors import LongLLaVAError
from longllava_trt.runtime.sampling import Sampler, SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.base import SequenceState, StepDecoder

__all__ = ["generate_tokens"]


def generate_tokens(
    decoder: StepDecoder,
    state: SequenceState,
    logits: NDArray[np.float32],
    *,
    embed: Callable[[int], NDArray[np.float32]],
    eos_token_ids: Collection[int],
    sampling: SamplingParams,
) -> Iterator[int]:
    """Yield chosen tokens, until an end-of-sequence token or the limit.

    End-of-sequence tokens are forbidden before `min_new_tokens`, and are not yielded. The caller
    looks for stop texts, since this function knows only ids.

    Args:
        decoder: The decoder.
        state: State after the prompt; changed in place. The last token yielded has not been fed.
        logits: Logits of the first token after the prompt. [vocab_size], float32.
        embed: Returns a token's embedding. [1, 1, hidden_size], float32.
        eos_token_ids: Ids that end the answer.
        sampling: Rules for choosing tokens, and their number.

    Raises:
        LongLLaVAError: If scores are not finite; names the position.
    """
    sampler = Sampler(sampling)
    ends = list(eos_token_ids)
    answer: list[int] = []
    while True:
        _check_finite(logits, state, len(answer))
        if len(answer) < sampling.min_new_tokens:
            logits = logits.copy()
            logits[ends] = -np.inf
        token = sampler.choose(logits, answer)
        if token in ends:
            return
        answer.append(token)
        yield token
        if len(answer) == sampling.max_new_tokens:
            return
        logits = decoder.step(embed(token), state)


def _check_finite(logits: NDArray[np.float32], state: SequenceState, num_answered: int) -> None:
    finite = np.isfinite(logits)
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        raise LongLLaVAError(
            f"generate: scores after position {state.past_len} (token {num_answered + 1} of the "
            f"answer) must be finite, got {logits[wrong[0]]} for id {wrong[0]} and {len(wrong)} such "
            "in all; check the bundle with 'longllava-trt verify' and 'longllava-trt validate'"
        )
