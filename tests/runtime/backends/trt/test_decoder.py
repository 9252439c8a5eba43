"""The decoder's engine: states, chunks and graphs, against the same arithmetic without any engine."""

from __future__ import annotations

import gc
import logging
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from longllava_trt.core.errors import ContractError, InputError, LongLLaVAError
from longllava_trt.runtime.backends.trt.decoder import TrtDecoder
from longllava_trt.runtime.backends.trt.engines import Engines

HIDDEN, VOCAB, CAPACITY = 4, 5, 24
RECURRENT = "past_key_values.0.recurrent_state"


@pytest.fixture
def embeds() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((1, 19, HIDDEN))
    return drawn.astype(ml_dtypes.bfloat16)


def expected(embeds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the logits after every position. [positions, VOCAB]."""
    head, bias = weights[: HIDDEN * VOCAB].reshape(HIDDEN, VOCAB), weights[HIDDEN * VOCAB :]
    h, seen, logits = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x in embeds[0].astype(np.float64):
        h = 0.5 * h + x
        seen[:3] += 2 * x[:3]
        logits.append((h + seen) @ head + bias)
    return np.array(logits)


def feed(decoder: TrtDecoder, embeds: np.ndarray, sizes: list[int], state: Any) -> np.ndarray:
    pieces = np.split(embeds[:, : sum(sizes)], np.cumsum(sizes)[:-1], axis=1)
    return np.array([decoder.step(piece, state) for piece in pieces])


@pytest.mark.parametrize("use_graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("sizes", [[8, 8, 3], [1] * 19, [7, 1, 2, 1, 1, 2, 5], [2, 8, 1]], ids=str)
def test_any_split_gives_the_same(
    sizes: list[int], use_graphs: bool, engines: Engines, embeds: np.ndarray, weights: np.ndarray
) -> None:
    decoder = TrtDecoder(engines, use_graphs=use_graphs)
    state = decoder.new_state()
    logits = feed(decoder, embeds, sizes, state)
    ends = np.cumsum(sizes) - 1
    np.testing.assert_allclose(logits, expected(embeds, weights)[ends], rtol=1e-4, atol=1e-5)
    assert state.past_len == sum(sizes)


def test_steps_are_replayed_once_they_have_proved_right(
    engines: Engines, embeds: np.ndarray, fake_runtime: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replays: list[int] = []
    fake_runtime.before_replay = lambda: replays.append(1)
    decoder = TrtDecoder(engines)
    state = decoder.new_state()
    feed(decoder, embeds, [8, 1, 1], state)
    assert decoder.graphs_are_right
    assert len(replays) == 4 + 2
    assert state.graphs.keys() == {0, 1}
    assert not caplog.records


def test_a_graph_that_gives_something_else_is_not_used(
    engines: Engines,
    embeds: np.ndarray,
    weights: np.ndarray,
    fake_runtime: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decoder = TrtDecoder(engines)
    state = decoder.new_state()
    feed(decoder, embeds, [8], state)

    def disturb() -> None:
        address = state.bindings()[RECURRENT]
        for start, block in fake_runtime.blocks.items():
            if start == address:
                block.view(np.float32)[:] += np.float32(1e-3)

    fake_runtime.before_replay = disturb
    with caplog.at_level(logging.WARNING):
        logits = decoder.step(embeds[:, 8:9], state)
    assert decoder.graphs_are_right is False
    assert RECURRENT in caplog.text
    np.testing.assert_allclose(logits, expected(embeds, weights)[8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("told", [False, True], ids=["fails", "TensorRT says so"])
def test_where_nothing_can_be_captured_steps_are_launched(
    told: bool,
    engines: Engines,
    embeds: np.ndarray,
    weights: np.ndarray,
    fake_runtime: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_runtime.fails_to_capture = not told
    fake_runtime.capturable = not told
    decoder = TrtDecoder(engines)
    made = fake_runtime.contexts
    with caplog.at_level(logging.WARNING):
        logits = feed(decoder, embeds, [8, 1, 1], decoder.new_state())
        feed(decoder, embeds, [8, 1], decoder.new_state())
    assert decoder.graphs_are_right is False
    assert ("cannot be captured" if told else "cudaStreamEndCapture") in caplog.text
    assert len(caplog.records) == 1, "it is said once"
    assert fake_runtime.contexts == made + 1, "a context that failed is not used again"
    np.testing.assert_allclose(logits, expected(embeds, weights)[[7, 8, 9]], rtol=1e-4, atol=1e-5)


def test_a_later_sequence_whose_capture_fails_goes_on(
    engines: Engines,
    embeds: np.ndarray,
    weights: np.ndarray,
    fake_runtime: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    decoder = TrtDecoder(engines)
    feed(decoder, embeds, [8, 1], decoder.new_state())
    assert decoder.graphs_are_right
    fake_runtime.fails_to_capture = True
    with caplog.at_level(logging.WARNING):
        logits = feed(decoder, embeds, [8, 1, 1], decoder.new_state())
    assert (decoder.graphs_are_right, len(caplog.records)) == (False, 1)
    np.testing.assert_allclose(logits, expected(embeds, weights)[[7, 8, 9]], rtol=1e-4, atol=1e-5)


def lengths(fake_runtime: Any) -> list[int]:
    """Return the number of positions of every launch."""
    return [shapes["inputs_embeds"][1] for shapes in fake_runtime.shapes]


def test_rests_are_fed_in_fixed_sizes(
    engines: Engines, embeds: np.ndarray, fake_runtime: Any
) -> None:
    decoder = TrtDecoder(engines, use_graphs=False)
    feed(decoder, embeds, [8, 7, 3], decoder.new_state())
    assert lengths(fake_runtime) == [8, 4, 1, 1, 1, 1, 1, 1]


def test_the_full_tensorrt_is_fed_whole(
    full_engines: Engines, embeds: np.ndarray, weights: np.ndarray, fake_runtime: Any
) -> None:
    decoder = TrtDecoder(full_engines)
    logits = feed(decoder, embeds, [8, 7, 3, 1], decoder.new_state())
    assert lengths(fake_runtime)[:3] == [8, 7, 3]
    assert decoder.graphs_are_right
    ends = [7, 14, 17, 18]
    np.testing.assert_allclose(logits, expected(embeds, weights)[ends], rtol=1e-4, atol=1e-5)


def test_graphs_of_a_context_that_is_gone_are_not_replayed(
    engines: Engines, embeds: np.ndarray, weights: np.ndarray, fake_runtime: Any
) -> None:
    decoder = TrtDecoder(engines)
    earlier = decoder.new_state()
    feed(decoder, embeds, [8, 1], earlier)
    fake_runtime.fails_to_capture = True
    feed(decoder, embeds, [8, 1], decoder.new_state())
    replays: list[int] = []
    fake_runtime.before_replay = lambda: replays.append(1)
    logits = decoder.step(embeds[:, 9:10], earlier)
    assert not replays
    np.testing.assert_allclose(logits, expected(embeds, weights)[9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_call_that_fails_at_a_later_piece_leaves_the_state_as_it_was(
    error: type[BaseException] | None,
    engines: Engines,
    embeds: np.ndarray,
    fake_runtime: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = TrtDecoder(engines, use_graphs=False)
    state = decoder.new_state()
    feed(decoder, embeds, [8], state)
    before = state.state_dict()
    with monkeypatch.context() as broken:
        if error is None:
            broken.setattr(fake_runtime, "fails_at_launch", fake_runtime.launches + 2)
        else:
            waits = iter([None, None])
            broken.setattr(decoder, "_cuda", Interrupted(decoder._cuda, waits, error))
        with pytest.raises(error or LongLLaVAError):
            decoder.step(embeds[:, 8:15], state)
    assert state.past_len == 8
    for name, array in state.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    again = decoder.new_state()
    feed(decoder, embeds, [8], again)
    np.testing.assert_array_equal(
        decoder.step(embeds[:, 8:15], state), decoder.step(embeds[:, 8:15], again)
    )


class Interrupted:
    """A device whose stream is waited for a few times, then the user interrupts."""

    def __init__(self, cuda: Any, waits: Any, error: type[BaseException]) -> None:
        self.cuda, self.waits, self.error = cuda, waits, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cuda, name)

    def synchronize(self, stream: Any) -> None:
        if next(self.waits, self) is self:
            raise self.error
        self.cuda.synchronize(stream)


def test_after_a_warm_up_no_call_has_a_new_size(
    engines: Engines, embeds: np.ndarray, fake_runtime: Any
) -> None:
    decoder = TrtDecoder(engines)
    decoder.warm_up()
    assert decoder.graphs_are_right
    met = set(lengths(fake_runtime))
    assert met == {8, 4, 1}
    state = decoder.new_state()
    for size in (2, 3, 5, 1, 7):
        decoder.step(embeds[:, :size], state)
    assert set(lengths(fake_runtime)) == met


def test_two_sequences_do_not_meet(
    engines: Engines, embeds: np.ndarray, weights: np.ndarray
) -> None:
    decoder = TrtDecoder(engines)
    first, second = decoder.new_state(), decoder.new_state()
    feed(decoder, embeds, [5, 1, 1], first)
    feed(decoder, embeds[:, ::-1], [3, 1], second)
    logits = decoder.step(embeds[:, 7:8], first)
    np.testing.assert_allclose(logits, expected(embeds, weights)[7], rtol=1e-4, atol=1e-5)


def test_a_state_goes_back_to_a_mark(engines: Engines, embeds: np.ndarray) -> None:
    decoder = TrtDecoder(engines)
    state = decoder.new_state()
    feed(decoder, embeds, [8, 1], state)
    mark = state.snapshot()
    once = feed(decoder, embeds[:, 9:], [1, 4], state)
    feed(decoder, embeds, [3], state)
    state.restore(mark)
    np.testing.assert_array_equal(feed(decoder, embeds[:, 9:], [1, 4], state), once)


def test_a_state_is_copied_out_and_taken_over(engines: Engines, embeds: np.ndarray) -> None:
    decoder = TrtDecoder(engines)
    state, restored = decoder.new_state(), decoder.new_state()
    feed(decoder, embeds, [8, 1], state)
    arrays = state.state_dict(copy=True)
    assert arrays["past_key_values.1.key"].shape == (1, 2, 9, 3)
    restored.load_state_dict(state.past_len, arrays.items())
    np.testing.assert_array_equal(
        decoder.step(embeds[:, 9:12], restored), decoder.step(embeds[:, 9:12], state)
    )


def test_positions_beyond_the_engine_are_refused(engines: Engines, embeds: np.ndarray) -> None:
    decoder = TrtDecoder(engines)
    state = decoder.new_state()
    feed(decoder, embeds, [8, 8, 3], state)
    with pytest.raises(InputError, match="19 positions fed and 6 more exceed the engine's 24"):
        decoder.step(embeds[:, :6], state)


def test_the_last_positions_are_reached_without_room_for_a_proof(
    engines: Engines, embeds: np.ndarray
) -> None:
    decoder = TrtDecoder(engines)
    state = decoder.new_state()
    feed(decoder, np.concatenate([embeds, embeds], 1), [8, 8, 6, 1, 1], state)
    assert state.past_len == CAPACITY
    assert decoder.graphs_are_right is None


def test_a_chunk_longer_than_the_engines_is_refused(engines: Engines, embeds: np.ndarray) -> None:
    decoder = TrtDecoder(engines)
    with pytest.raises(InputError, match="seq_len up to 8"):
        decoder.step(embeds[:, :9], decoder.new_state())


def test_another_dtype_is_refused(engines: Engines, embeds: np.ndarray) -> None:
    decoder = TrtDecoder(engines)
    with pytest.raises(ContractError, match="bfloat16, got"):
        decoder.step(embeds[:, :2].astype(np.float32), decoder.new_state())


def test_memory_of_a_dropped_state_is_given_back(
    engines: Engines, embeds: np.ndarray, fake_runtime: Any
) -> None:
    decoder = TrtDecoder(engines)
    feed(decoder, embeds, [8, 1, 1], decoder.new_state())
    gc.collect()
    before = len(fake_runtime.blocks)
    feed(decoder, embeds, [8, 1, 1], decoder.new_state())
    gc.collect()
    assert len(fake_runtime.blocks) == before


def test_a_device_without_memory_says_so(engines: Engines, fake_runtime: Any) -> None:
    decoder = TrtDecoder(engines)
    fake_runtime.capacity = 0
    with pytest.raises(LongLLaVAError, match="cudaErrorMemoryAllocation; use less: --max-context"):
        decoder.new_state()
