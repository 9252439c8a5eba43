"""The decoder on the Triton kernels themselves, under the interpreter: chunks, a step of two positions, single steps, a batch.

A launch of the interpreter takes tens of milliseconds, so a model of two layers has every kernel once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.runtime.backends.kernels.conftest import Small

LIMIT = 1e-5
TWO_LAYERS = {"num_hidden_layers": 2, "intermediate_size": 96}


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "w8a16"])
def test_kernels_give_the_references_scores(make_small: Callable[..., Small], quant: str) -> None:
    model = make_small(quant, **TWO_LAYERS)
    embeds = model.embeds(1, 40)
    state = model.decoder.new_state(capacity=40)
    want = model.want(embeds)
    for begin, end in ((0, 36), (36, 38), (38, 39), (39, 40)):
        found = model.decoder.step(embeds[:, begin:end], state)
        assert np.abs(found - want[end - 1]).max() <= LIMIT * np.abs(want[end - 1]).max()


@pytest.mark.slow
def test_kernels_step_sequences_of_unequal_lengths_together(
    make_small: Callable[..., Small],
) -> None:
    model = make_small(**TWO_LAYERS)
    states = model.decoder.new_states(3, capacity=16)
    lengths = {0: 5, 2: 1}
    for slot, length in lengths.items():
        model.decoder.step(model.embeds(1, length, seed=slot), states[slot])
    steps = model.embeds(2, 1, seed=9)
    found = model.decoder.step_batch(steps, [states[2], states[0]])
    for row, slot in enumerate((2, 0)):
        prompt = model.embeds(1, lengths[slot], seed=slot)
        want = model.want(np.concatenate([prompt, steps[row : row + 1]], axis=1))[-1]
        assert np.abs(found[row] - want).max() <= LIMIT * np.abs(want).max()
    assert states[1].past_len == 0
    assert not any(array.any() for array in states[1].state_dict().values())
