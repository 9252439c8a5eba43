"""The tokenizer against transformers' own, and its stream against the whole decode."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.models.llava_jamba.chat import CHAT
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from tests.full_tokenizer import FULL_TOKENIZER

ROLE_TOKEN = "<|startoftext|>"
DATA = Path(__file__).parent / "data"
REDUCED = DATA / "reduced-tokenizer"
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>", "<|pad|>", "<|unk|>")
"""Hypothesis tries words of our sources too, and these are not text to LongLLaVA's tokenizer."""
KEPT_STRINGS: list[str] = runpy.run_path(str(DATA / "reduce_tokenizer.py"))["kept_strings"]()
REDUCED_VOCAB: dict[str, int] = json.loads(
    (REDUCED / "tokenizer.json").read_text(encoding="utf-8")
)["model"]["vocab"]

needs_full = pytest.mark.skipif(
    not (FULL_TOKENIZER / "tokenizer.json").is_file(),
    reason=f"no full Jamba tokenizer in {FULL_TOKENIZER}: equality with it and with transformers is unproven",
)


@pytest.fixture(scope="module")
def reduced() -> ChatTokenizer:
    return ChatTokenizer(REDUCED, CHAT)


@pytest.fixture(scope="module")
def full() -> ChatTokenizer:
    return ChatTokenizer(FULL_TOKENIZER, CHAT)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=[ROLE_TOKEN])
    tokenizer.train_from_iterator([], trainer)
    folder = tmp_path_factory.mktemp("byte-level")
    tokenizer.save(str(folder / "tokenizer.json"))
    return ChatTokenizer(folder)


def streamed(tokenizer: ChatTokenizer, ids: Iterable[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@needs_full
def test_reduced_tokenizer_equals_the_full_one_on_every_part_of_its_strings(
    reduced: ChatTokenizer, full: ChatTokenizer
) -> None:
    for text in KEPT_STRINGS:
        for start in range(0, len(text), 7):
            for end in (start + 1, start + 11, start + 40, len(text)):
                assert reduced.encode(text[start:end]) == full.encode(text[start:end])


@needs_full
def test_committed_reduction_is_what_the_script_makes(tmp_path: Path) -> None:
    out = tmp_path / "tokenizer.json"
    script = DATA / "reduce_tokenizer.py"
    command = [sys.executable, str(script), str(FULL_TOKENIZER / "tokenizer.json"), str(out)]
    subprocess.run(command, check=True)
    assert out.read_bytes() == (REDUCED / "tokenizer.json").read_bytes()
    assert out.stat().st_size < 100_000


@needs_full
def test_ids_and_text_equal_those_of_transformers(full: ChatTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(FULL_TOKENIZER / "tokenizer.json")
    )
    texts = [
        *KEPT_STRINGS,
        "  two spaces",
        "</img>",
        "a\r\n\tb",
        "12345 + 6.7",
        "\0\x7f",
        "ﬁ é e\u0301",
    ]
    for text in texts:
        ids = full.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False)
        assert full.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@needs_full
def test_prefix_space_would_change_the_ids_after_an_image(full: ChatTokenizer) -> None:
    assert full.encode("</img>") == [2365, 7747, 63002]
    assert full.encode(" </img>")[0] == 7968


def test_special_tokens_in_a_text_become_their_ids_and_never_print(reduced: ChatTokenizer) -> None:
    assert reduced.encode("<|startoftext|>Hello<|endoftext|>") == [1, 13654, 2]
    assert reduced.decode([1, 13654, 2]) == "Hello"
    assert reduced.encode("") == []
    assert reduced.decode([]) == ""


@pytest.mark.parametrize("text", ["🪿", "日本語", "e\u0301", "\U0010ffff", "a\n\n🪿\n"], ids=ascii)
def test_stream_never_prints_half_a_character(reduced: ChatTokenizer, text: str) -> None:
    pieces = streamed(reduced, reduced.encode(text))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_stream_prints_a_word_at_once(reduced: ChatTokenizer) -> None:
    ids = reduced.encode("What does the picture show?")
    assert streamed(reduced, ids) == [*(reduced.decode([i]) for i in ids), ""]


def test_stream_can_be_used_again_after_finish(reduced: ChatTokenizer) -> None:
    stream = reduced.stream()
    (first_byte, *_) = reduced.encode("🪿")
    assert stream.push(first_byte) == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert stream.push(13654) == "Hello"
    assert stream.finish() == ""


def test_decoding_each_id_alone_would_break_characters(reduced: ChatTokenizer) -> None:
    ids = reduced.encode("🪿")
    assert "".join(reduced.decode([i]) for i in ids) != "🪿"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=40))
def test_any_text_survives_encode_and_stream(reduced: ChatTokenizer, text: str) -> None:
    assume(not any(token in text for token in SPECIAL_TOKENS))
    ids = reduced.encode(text)
    assert reduced.decode(ids) == text
    assert "".join(streamed(reduced, ids)) == text


# special tokens, pieces, bytes that are mostly not UTF-8, and ids that nothing has
ANY_ID = (
    st.sampled_from(sorted(REDUCED_VOCAB.values()))
    | st.sampled_from([i for piece, i in REDUCED_VOCAB.items() if piece.startswith("<0x")])
    | st.sampled_from([0, 1, 2, 3, 70_000])
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ids=st.lists(ANY_ID, max_size=30))
def test_stream_of_any_ids_equals_the_whole_decode(reduced: ChatTokenizer, ids: list[int]) -> None:
    assert "".join(streamed(reduced, ids)) == reduced.decode(ids)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.characters(codec="utf-8"), max_size=20))
def test_stream_of_a_byte_level_vocabulary_prints_whole_characters(
    byte_level: ChatTokenizer, text: str
) -> None:
    pieces = streamed(byte_level, byte_level.encode(text))
    assert "".join(pieces) == text
    assert all(piece in text for piece in pieces)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"tokenizer\.json: not found"):
        ChatTokenizer(tmp_path, CHAT)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff\xfe", (REDUCED / "tokenizer.json").read_bytes()[:5000]],
    ids=["empty", "other-json", "binary", "truncated"],
)
def test_damaged_file_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ManifestError, match="not a tokenizer"):
        ChatTokenizer(tmp_path, CHAT)


def add_prefix_space(raw: dict[str, Any]) -> None:
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    raw["normalizer"] = {"type": "Sequence", "normalizers": [prepend, raw["normalizer"]]}


def unregister_bos(raw: dict[str, Any]) -> None:
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != ROLE_TOKEN]


@pytest.mark.parametrize(
    ("change", "message"),
    [(add_prefix_space, "a space before every text"), (unregister_bos, "must be one special")],
    ids=["prefix-space", "bos-is-plain-text"],
)
def test_tokenizer_that_would_spoil_prompts_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_changed(tmp_path, change)
    with pytest.raises(ManifestError, match=message):
        ChatTokenizer(tmp_path, CHAT)


def test_limits_left_in_the_file_are_lifted(tmp_path: Path, reduced: ChatTokenizer) -> None:
    def set_limits(raw: dict[str, Any]) -> None:
        limited = Tokenizer.from_str(json.dumps(raw))
        limited.enable_truncation(4)
        limited.enable_padding(length=64)
        raw |= json.loads(limited.to_str())

    write_changed(tmp_path, set_limits)
    text = "What does the picture show?"
    assert ChatTokenizer(tmp_path).encode(text) == reduced.encode(text)


def test_text_in_a_wrong_encoding_is_reported(reduced: ChatTokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        reduced.encode(b"caf\xe9".decode("utf-8", errors="surrogateescape"))


def write_changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((REDUCED / "tokenizer.json").read_text(encoding="utf-8"))
    change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
