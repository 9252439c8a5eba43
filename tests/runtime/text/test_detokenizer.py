"""The answer's text: whole, cut at stop texts however they are spread over ids, and streamed without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longllava_trt.runtime.text.detokenizer import IncrementalDetokenizer
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

TOKENIZER = ChatTokenizer(Path(__file__).parent / "data" / "reduced-tokenizer")
TEXT = "What does the picture show?\nA cat\n\nand a dog — «été» 猫."
WHAT_MAY_COME = st.text(st.sampled_from("ab\n é猫"), max_size=14)


def streamed(
    ids: Sequence[int], stop: Sequence[str]
) -> tuple[list[str], int, IncrementalDetokenizer]:
    """Return the pieces, and how many ids it took."""
    text = IncrementalDetokenizer(TOKENIZER.stream(), stop)
    pieces, taken = [], 0
    for token_id in ids:
        pieces.append(text.push(token_id))
        taken += 1
        if text.is_stopped:
            break
    pieces.append(text.finish())
    return pieces, taken, text


def expected(ids: Sequence[int], stop: Sequence[str]) -> tuple[str, int]:
    """Decode the whole answer after every id: slow and obvious."""
    for taken in range(1, len(ids) + 1):
        text = TOKENIZER.decode(ids[:taken])
        found = [text.index(s) for s in stop if s in text]
        if found:
            return text[: min(found)], taken
    return TOKENIZER.decode(ids), len(ids)


def one_byte_at_a_time(text: str) -> list[int]:
    vocab = TOKENIZER._tokenizer.get_vocab()
    return [vocab[f"<0x{byte:02X}>"] for byte in text.encode()]


@pytest.mark.parametrize(
    "stop",
    [[], ["cat"], ["\n"], ["\n\n"], ["dog", "cat\n"], ["été"], ["猫."], ["What"], ["never"]],
    ids=repr,
)
@pytest.mark.parametrize("spread", ["pieces", "bytes"])
def test_answer_ends_before_the_first_stop_text(stop: list[str], spread: str) -> None:
    ids = TOKENIZER.encode(TEXT) if spread == "pieces" else one_byte_at_a_time(TEXT)
    pieces, taken, text = streamed(ids, stop)
    assert ("".join(pieces), taken) == expected(ids, stop)
    assert text.text == "".join(pieces)
    assert text.is_stopped == (stop not in ([], ["never"]))


@settings(max_examples=150, deadline=None)
@given(text=WHAT_MAY_COME, stop=st.lists(WHAT_MAY_COME.filter(bool), max_size=3))
def test_no_piece_ever_holds_a_part_of_a_stop_text(text: str, stop: list[str]) -> None:
    for ids in (TOKENIZER.encode(text), one_byte_at_a_time(text)):
        pieces, taken, answer = streamed(ids, stop)
        assert ("".join(pieces), taken) == expected(ids, stop)
        assert not any(s in answer.text for s in stop)


def test_a_beginning_that_came_to_nothing_is_shown() -> None:
    pieces, _, _ = streamed(TOKENIZER.encode("aaab ab"), ["aaaa", "abc"])
    assert "".join(pieces) == "aaab ab"


def test_the_slow_way_disagrees_with_a_stream_that_forgets_to_hold_back() -> None:
    """A negative control: without holding back, the beginning of a stop text would be shown."""
    ids = TOKENIZER.encode("a b\ncc")
    stop = "b\nc"
    stream = TOKENIZER.stream()
    careless = ""
    for token_id in ids:
        careless += stream.push(token_id)
        if stop in careless:
            break
    assert "b" in careless
    assert expected(ids, [stop])[0] == "a "
    assert "".join(streamed(ids, [stop])[0]) == "a "
