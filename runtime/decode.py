"""The decoding loop: scores to a token, the token to the next scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

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
    eos_token_id: int,
    sampling: SamplingParams,
) -> Iterator[int]:
    """Yield chosen tokens again and again, until the end-of-sequence token or the limit.

    The end-of-sequence token is forbidden before `min_new_tokens`, and is not yielded. Stop texts are the caller's
    to look for: here are only ids.

    Args:
        decoder: The decoder.
        state: After the prompt; carried on in place. The last token yielded has not been fed.
        logits: Of the position after the prompt. [vocab_size].
        embed: Returns a token's embedding. [1, 1, hidden_size].
        eos_token_id: Ends the answer.
        sampling: How tokens are chosen, and how many.
    """
    sampler = Sampler(sampling)
    answer: list[int] = []
    while True:
        if len(answer) < sampling.min_new_tokens:
            logits = logits.copy()
            logits[eos_token_id] = -np.inf
        token = sampler.choose(logits, answer)
        if token == eos_token_id:
            return
        answer.append(token)
        yield token
        if len(answer) == sampling.max_new_tokens:
            return
        logits = decoder.step(embed(token), state)
