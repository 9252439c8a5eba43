"""The decoder's carried state: in place where it may be, double-buffered where it must be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.backends.ort.decoder import Decoder
from longllava_trt.runtime.backends.ort.session import OnnxSession

if TYPE_CHECKING:
    from numpy.typing import NDArray

LENGTH = 23


@pytest.fixture(scope="module", params=["fast", "bodies"])
def decoder(request: pytest.FixtureRequest, tiny_bundle: Path) -> Decoder:
    session = OnnxSession(
        tiny_bundle, Manifest.load(tiny_bundle), "decoder", kernels=request.param, num_threads=1
    )
    return Decoder(session)


@pytest.fixture(scope="module")
def embeds() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((1, LENGTH, 64)).astype(np.float32)


def relative_rms(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def feed(decoder: Decoder, embeds: NDArray[np.float32], sizes: list[int]) -> NDArray[np.float32]:
    state = decoder.new_state(capacity=LENGTH)
    for piece in np.split(embeds, np.cumsum(sizes)[:-1], axis=1):
        logits = decoder.step(piece, state)
    assert state.past_len == LENGTH
    return logits


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [1, 22], [20, 3], [7, 1, 2, 13]], ids=str)
def test_chunks_of_any_size_equal_the_whole(
    decoder: Decoder, embeds: NDArray[np.float32], sizes: list[int]
) -> None:
    whole = feed(decoder, embeds, [LENGTH])
    assert relative_rms(feed(decoder, embeds, sizes), whole) <= 1e-5


def test_forgetting_the_recurrent_state_between_chunks_is_noticed(
    decoder: Decoder, embeds: NDArray[np.float32]
) -> None:
    whole = feed(decoder, embeds, [LENGTH])
    state = decoder.new_state(capacity=LENGTH)
    decoder.step(embeds[:, :12], state)
    for name, buffer in state.current.items():
        if name.endswith("recurrent_state"):
            buffer.array[:] = 0
    assert relative_rms(decoder.step(embeds[:, 12:], state), whole) > 1e-2


def test_keys_and_values_are_written_in_place(
    decoder: Decoder, embeds: NDArray[np.float32]
) -> None:
    state = decoder.new_state(capacity=LENGTH)
    key = state.current["past_key_values.4.key"].array
    decoder.step(embeds[:, :5], state)
    assert state.current["past_key_values.4.key"].array is key
    assert np.abs(key[:, :, :5]).min(axis=(0, 1, 3)).all()
    assert not key[:, :, 5:].any()


def test_recurrent_states_alternate_between_two_buffers(
    decoder: Decoder, embeds: NDArray[np.float32]
) -> None:
    state = decoder.new_state(capacity=LENGTH)
    name = "past_key_values.0.recurrent_state"
    first, second = state.current[name].array, state.spare[name].array
    decoder.step(embeds[:, :1], state)
    assert state.current[name].array is second
    assert not first.any()
    decoder.step(embeds[:, 1:2], state)
    assert state.current[name].array is first


def test_spare_buffers_are_never_read(decoder: Decoder, embeds: NDArray[np.float32]) -> None:
    clean = feed(decoder, embeds, [9, 14])
    state = decoder.new_state(capacity=LENGTH)
    for piece in np.split(embeds, [9], axis=1):
        for buffer in state.spare.values():
            buffer.array[:] = np.nan
        logits = decoder.step(piece, state)
    np.testing.assert_array_equal(logits, clean)


def test_capacity_beyond_the_prompt_changes_nothing(
    decoder: Decoder, embeds: NDArray[np.float32]
) -> None:
    whole = feed(decoder, embeds, [LENGTH])
    roomy = decoder.step(embeds, decoder.new_state(capacity=300))
    assert relative_rms(roomy, whole) <= 1e-6


def test_reserve_keeps_what_was_fed(decoder: Decoder, embeds: NDArray[np.float32]) -> None:
    whole = feed(decoder, embeds, [LENGTH])
    state = decoder.new_state(capacity=11)
    decoder.step(embeds[:, :11], state)
    before = state.state_dict(copy=True)
    state.reserve(LENGTH)
    after = state.state_dict(copy=True)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert relative_rms(decoder.step(embeds[:, 11:], state), whole) <= 1e-5


def test_a_full_cache_is_refused_and_left_as_it_was(
    decoder: Decoder, embeds: NDArray[np.float32]
) -> None:
    state = decoder.new_state(capacity=11)
    decoder.step(embeds[:, :10], state)
    before = state.state_dict(copy=True)
    with pytest.raises(InputError, match="10 positions fed and 2 more exceed the cache of 11"):
        decoder.step(embeds[:, :2], state)
    assert all(
        np.array_equal(value, before[name]) for name, value in state.state_dict(copy=True).items()
    )
