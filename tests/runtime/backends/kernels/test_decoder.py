"""The decoder on the kernels' plain versions: whole, in pieces, step by step, several at once; its state kept, moved and grown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from longllava_trt.core.errors import ContractError, InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from tests.runtime.backends.kernels.conftest import Small

pytestmark = pytest.mark.usefixtures("plain_versions")

LENGTH = 17
LIMIT = 1e-5


def pieces_of(embeds: NDArray[Any], sizes: Sequence[int]) -> Iterator[NDArray[Any]]:
    yield from np.split(embeds, np.cumsum(sizes)[:-1], axis=1)


def error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def feed(model: Small, embeds: NDArray[Any], sizes: Sequence[int]) -> tuple[NDArray[Any], Any]:
    state = model.decoder.new_state(capacity=embeds.shape[1])
    rows = [model.decoder.step(piece, state) for piece in pieces_of(embeds, sizes)]
    assert state.past_len == int(state.pool.past_len[0]) == embeds.shape[1]
    return np.stack(rows), state


@pytest.mark.parametrize("sizes", [[LENGTH], [1] * LENGTH, [1, 16], [14, 3], [7, 1, 2, 7]], ids=str)
def test_any_pieces_give_the_references_scores(small: Small, sizes: list[int]) -> None:
    embeds = small.embeds(1, LENGTH)
    found, _ = feed(small, embeds, sizes)
    assert error(found, small.want(embeds)[np.cumsum(sizes) - 1]) <= LIMIT


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 1, "num_experts_per_tok": 1},
        {"num_experts_per_tok": 4},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "mamba_dt_rank": 5, "mamba_d_conv": 2},
    ],
    ids=str,
)
def test_other_sizes_give_the_references_scores(
    make_small: Callable[..., Small], changes: dict[str, int]
) -> None:
    model = make_small(**changes)
    embeds = model.embeds(1, LENGTH)
    found, _ = feed(model, embeds, [9, 1, 7])
    assert error(found, model.want(embeds)[[8, 9, 16]]) <= LIMIT


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_quantised_experts_equal_the_reference_with_what_they_stand_for(
    make_small: Callable[..., Small], quant: str, small: Small
) -> None:
    model = make_small(quant)
    embeds = model.embeds(1, LENGTH)
    found, _ = feed(model, embeds, [LENGTH - 1, 1])
    assert error(found, model.want(embeds)[-2:]) <= LIMIT
    assert error(found, small.want(embeds)[-2:]) > 1e-3, "quantisation moves the scores"


def test_forgetting_the_state_is_noticed(small: Small) -> None:
    embeds = small.embeds(1, LENGTH)
    state = small.decoder.new_state(capacity=LENGTH)
    small.decoder.step(embeds[:, :12], state)
    for name in state.pool.recurrent:
        state.pool.tensors[name].zero_()
    found = small.decoder.step(embeds[:, 12:], state)
    assert error(found, small.want(embeds)[-1]) > 1e-3


def test_a_batch_of_unequal_lengths_equals_one_at_a_time(small: Small) -> None:
    lengths = (5, 1, 12)
    prompts = [small.embeds(1, length, seed=length) for length in lengths]
    steps = small.embeds(3, 4, seed=9)
    together = small.decoder.new_states(3, capacity=32)
    alone = [small.decoder.new_state(capacity=32) for _ in lengths]
    for prompt, one, other in zip(prompts, together, alone, strict=True):
        small.decoder.step(prompt, one)
        small.decoder.step(prompt, other)
    for step in range(4):
        found = small.decoder.step_batch(steps[:, step : step + 1], together)
        want = [
            small.decoder.step(steps[row : row + 1, step : step + 1], state)
            for row, state in enumerate(alone)
        ]
        assert error(found, np.stack(want)) <= LIMIT
    assert [state.past_len for state in together] == [length + 4 for length in lengths]
    assert together[0].pool.past_len.tolist() == [length + 4 for length in lengths]


@pytest.mark.parametrize("order", [(2, 0), (0, 2), (1,), (3, 1)])
def test_a_batch_leaves_other_slots_as_they_are(small: Small, order: tuple[int, ...]) -> None:
    states = small.decoder.new_states(4, capacity=16)
    for slot, state in enumerate(states):
        small.decoder.step(small.embeds(1, slot + 2, seed=slot), state)
    before = [state.state_dict() for state in states]
    steps = small.embeds(len(order), 1, seed=7)
    found = small.decoder.step_batch(steps, [states[slot] for slot in order])
    for row, slot in enumerate(order):
        prompt = small.embeds(1, slot + 2, seed=slot)
        whole = np.concatenate([prompt, steps[row : row + 1]], axis=1)
        assert error(found[row], small.want(whole)[-1]) <= LIMIT
    for slot in set(range(4)) - set(order):
        assert states[slot].past_len == int(states[slot].pool.past_len[slot]) == slot + 2
        for name, array in states[slot].state_dict().items():
            assert (array == before[slot][name]).all(), name


def test_a_snapshot_is_a_point_to_go_back_to(small: Small) -> None:
    embeds = small.embeds(1, LENGTH)
    _, state = feed(small, embeds[:, :10], [10])
    state.reserve(LENGTH)
    mark = state.snapshot()
    first = small.decoder.step(embeds[:, 10:], state)
    state.restore(mark)
    assert state.past_len == 10
    assert (small.decoder.step(embeds[:, 10:], state) == first).all()
    assert error(first, small.want(embeds)[-1]) <= LIMIT


def test_a_call_that_is_cut_off_changes_nothing(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds = small.embeds(1, LENGTH)
    _, state = feed(small, embeds[:, :10], [10])
    state.reserve(LENGTH)
    before = state.state_dict()

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    # all has been computed, only the logits are not here yet
    with monkeypatch.context() as patch:
        patch.setattr(small.decoder.stream, "to_host", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small.decoder.step(embeds[:, 10:12], state)
    assert state.past_len == int(state.pool.past_len[0]) == 10
    assert all((array == before[name]).all() for name, array in state.state_dict().items())
    assert error(small.decoder.step(embeds[:, 10:], state), small.want(embeds)[-1]) <= LIMIT


def test_the_room_of_a_state_that_is_gone_is_used_again(make_small: Callable[..., Small]) -> None:
    model = make_small()
    embeds = model.embeds(1, LENGTH)
    first = model.decoder.new_state(capacity=LENGTH)
    model.decoder.step(model.embeds(1, LENGTH, seed=1), first)
    pool, other = first.pool, model.decoder.new_state(capacity=LENGTH)
    assert other.pool is not pool
    del first
    again = model.decoder.new_state(capacity=LENGTH - 1)
    assert again.pool is pool
    assert again.past_len == 0
    assert error(model.decoder.step(embeds, again), model.want(embeds)[-1]) <= LIMIT
    del again
    assert model.decoder.new_state(capacity=LENGTH + 1).pool is not pool, "too small"


def test_both_halves_are_aligned_alike(small: Small) -> None:
    pool = small.decoder.new_states(3, capacity=8)[0].pool
    span = pool.span(1, 3)
    assert span.past_len.data_ptr() % 16 == span.next_len.data_ptr() % 16
    for read, written in zip(span.layers, span.written, strict=True):
        assert [t.data_ptr() % 16 for t in read] == [t.data_ptr() % 16 for t in written]


def test_a_length_that_is_set_is_known_to_the_device(small: Small) -> None:
    states = small.decoder.new_states(2, capacity=8)
    states[1].past_len = 5
    assert [state.past_len for state in states] == states[0].pool.past_len.tolist() == [0, 5]


def test_a_state_moves_to_another_slot(small: Small) -> None:
    embeds = small.embeds(1, LENGTH)
    _, state = feed(small, embeds[:, :-1], [14, 2])
    saved = state.state_dict()
    assert list(saved) == [t.name for t in small.spec.inputs[2:]], (
        "the bundle's names, in its order"
    )
    assert saved["past_key_values.1.key"].shape[2] == LENGTH - 1
    other = small.decoder.new_states(3, capacity=LENGTH + 5)[1]
    other.load_state_dict(LENGTH - 1, saved.items())
    assert error(small.decoder.step(embeds[:, -1:], other), small.want(embeds)[-1]) <= LIMIT


def test_more_room_keeps_what_is_there(small: Small) -> None:
    embeds = small.embeds(1, LENGTH)
    (state,) = small.decoder.new_states(1, capacity=8)
    small.decoder.step(embeds[:, :8], state)
    state.reserve(4)
    assert state.capacity == 8
    state.reserve(LENGTH)
    assert state.capacity == LENGTH
    assert error(small.decoder.step(embeds[:, 8:], state), small.want(embeds)[-1]) <= LIMIT


def test_bad_input_is_refused(small: Small) -> None:
    decoder = small.decoder
    (state,), (other,) = (decoder.new_states(1, capacity=4) for _ in range(2))
    one = small.embeds(1, 1)
    with pytest.raises(ContractError, match=r"must be \[1, 1, 64\] float32, got \[1, 1, 63\]"):
        decoder.step(one[..., :-1], state)
    with pytest.raises(ContractError, match="float64"):
        decoder.step(one.astype(np.float64), state)
    with pytest.raises(InputError, match="0 positions fed and 5 more exceed the cache of 4"):
        decoder.step(small.embeds(1, 5), state)
    with pytest.raises(InputError, match="from one call of new_states"):
        decoder.step_batch(small.embeds(2, 1), [state, other])
    with pytest.raises(InputError, match="from one call of new_states"):
        decoder.step_batch(small.embeds(2, 1), [state, state])
    with pytest.raises(InputError, match="at least one sequence"):
        decoder.step_batch(small.embeds(1, 1)[:0], [])
    with pytest.raises(ContractError, match="one position a sequence, got 2"):
        decoder.step_batch(small.embeds(1, 2), [state])
    assert state.past_len == 0


def test_a_state_of_another_model_is_refused(small: Small) -> None:
    (state,) = small.decoder.new_states(1, capacity=4)
    saved = state.state_dict()
    with pytest.raises(ContractError, match=r"carries no 'past_key_values\.9\.key'"):
        state.load_state_dict(0, [("past_key_values.9.key", saved["past_key_values.1.key"])])
    conv = saved["past_key_values.0.conv_state"]
    with pytest.raises(ContractError, match=r"must be \[1, 128, 16\], got \[1, 128, 3\]"):
        state.load_state_dict(0, [("past_key_values.0.recurrent_state", conv)])
    with pytest.raises(InputError, match="a state of 5 positions exceeds the cache of 4"):
        state.load_state_dict(5, saved.items())


class FakeStep:
    """Stands in for a captured step: launches again what was captured, or not quite that."""

    is_right = True

    def __init__(self, launch: Callable[[torch.Tensor], torch.Tensor], like: Any, **_: Any) -> None:
        self.launch = launch

    def __call__(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        return self.launch(inputs_embeds if self.is_right else inputs_embeds * 1.01)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, make_small: Callable[..., Small]) -> Small:
    from longllava_trt.runtime.backends.kernels import decoder

    monkeypatch.setattr(decoder, "CapturedStep", FakeStep)
    model = make_small()
    assert model.decoder.graphs_are_right is False, "there are none on a CPU"
    model.decoder.graphs_are_right = None
    return model


def test_replayed_steps_prove_right_and_leave_no_trace(graphs: Small) -> None:
    embeds = graphs.embeds(1, 12)
    state = graphs.decoder.new_state(capacity=12)
    rows = [graphs.decoder.step(piece, state) for piece in pieces_of(embeds, [6] + [1] * 6)]
    assert graphs.decoder.graphs_are_right is True
    assert sorted(state.pool.graphs) == [(0, 1, 0), (0, 1, 1)], "one a half"
    assert error(np.stack(rows), graphs.want(embeds)[5:]) <= LIMIT
    state.reserve(20)
    assert state.pool.graphs == {}, "the caches are elsewhere"


def test_a_replay_that_is_wrong_is_not_used(
    graphs: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeStep, "is_right", False)
    embeds = graphs.embeds(1, 12)
    state = graphs.decoder.new_state(capacity=12)
    rows = [graphs.decoder.step(piece, state) for piece in pieces_of(embeds, [6] + [1] * 6)]
    assert graphs.decoder.graphs_are_right is False
    assert "gives another 0.past_key_values.0.conv_state" in caplog.text
    assert error(np.stack(rows), graphs.want(embeds)[5:]) <= LIMIT


def test_a_capture_that_fails_is_said_and_survived(
    graphs: Small, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeStep, "__init__", fail)
    embeds = graphs.embeds(1, 8)
    found, _ = feed(graphs, embeds, [3, 1, 1, 1, 1, 1])
    assert "no CUDA graph can be made (operation not permitted" in caplog.text
    assert error(found, graphs.want(embeds)[2:]) <= LIMIT
