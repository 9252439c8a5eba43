"""The decoding loop: what is forbidden, what ends it, and what is fed back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from longllava_trt.runtime.backends.ort.decoder import Decoder, DecoderState
from longllava_trt.runtime.decode import generate_tokens
from longllava_trt.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

EOS = 2


class ScriptedDecoder:
    """Scores that make each next token of a script the most likely."""

    def __init__(self, script: list[int], others: float = 0) -> None:
        self.script = script
        self.others = others
        self.fed: list[int] = []

    def scores(self) -> NDArray[np.float32]:
        scores = np.full(9, self.others, dtype=np.float32)
        scores[self.script[len(self.fed)]] = 1
        return scores

    def step(self, inputs_embeds: NDArray[np.float32], state: DecoderState) -> NDArray[np.float32]:
        self.fed.append(int(inputs_embeds[0, 0, 0]))
        return self.scores()


def run(script: list[int], *, others: float = 0, **options: Any) -> tuple[list[int], list[int]]:
    decoder = ScriptedDecoder(script, others)
    tokens = generate_tokens(
        cast("Decoder", decoder),
        cast("DecoderState", None),
        decoder.scores(),
        embed=lambda token: np.full((1, 1, 1), token, np.float32),
        eos_token_ids=(EOS,),
        sampling=SamplingParams(**{"max_new_tokens": 10, **options}),
    )
    return list(tokens), decoder.fed


def test_end_of_sequence_ends_without_being_yielded() -> None:
    assert run([5, 6, EOS, 7]) == ([5, 6], [5, 6])


def test_end_of_sequence_is_forbidden_as_first_token() -> None:
    tokens, _ = run([EOS, EOS])
    assert tokens == [0]


def test_end_of_sequence_is_forbidden_before_the_least_number_of_tokens() -> None:
    tokens, _ = run([EOS, 5, EOS, EOS, 7], min_new_tokens=3)
    assert tokens == [0, 5, 0]


def test_end_of_sequence_may_come_at_once_if_no_token_is_demanded() -> None:
    assert run([EOS, 5], min_new_tokens=0) == ([], [])


def test_penalty_sees_the_answer_so_far() -> None:
    # every other token has 0.8; once in the answer, the scripted 1 counts 1 / 1.5
    assert run([5, 5, EOS], others=0.8) == ([5, 5], [5, 5])
    assert run([5, 5, EOS], others=0.8, repetition_penalty=1.5) == ([5, 0], [5, 0])


def test_limit_is_kept_and_the_last_token_is_not_fed() -> None:
    assert run([5, 6, 7, 8], max_new_tokens=3) == ([5, 6, 7], [5, 6])


def test_logits_given_are_not_changed() -> None:
    decoder = ScriptedDecoder([EOS, 3])
    logits = decoder.scores()
    before = logits.copy()
    next(
        generate_tokens(
            cast("Decoder", decoder),
            cast("DecoderState", None),
            logits,
            embed=lambda _: np.zeros((1, 1, 1), np.float32),
            eos_token_ids=(EOS,),
            sampling=SamplingParams(max_new_tokens=1),
        )
    )
    np.testing.assert_array_equal(logits, before)
