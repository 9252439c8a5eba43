"""tokenizer.json made from tokenizer.model, against the sentencepiece package and the original's slow tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from longllava_trt.core.errors import CheckpointError
from longllava_trt.export.sentencepiece_model import read_sentencepiece
from longllava_trt.export.tokenizer import place_tokenizer
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.llava_jamba.chat import CHAT
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from tests.full_tokenizer import FULL_TOKENIZER
from tests.llava_series import mistral_model
from tests.models.llava.gold import DATA

spm = pytest.importorskip("sentencepiece", reason="no sentencepiece: conversion is unproven")
MISTRAL = mistral_model()
needs_mistral = pytest.mark.skipif(
    MISTRAL is None or not MISTRAL.is_file(),
    reason="no mistral-common: conversion of Mistral's own tokenizer is unproven",
)

PIECES = st.sampled_from(
    [
        "the",
        "ing",
        " ",
        "  ",
        "   ",
        "\n",
        "\t",
        "▁",
        "12",
        ".",
        "[INST]",
        "é",
        "e\u0301",
        "語",
        "🙂",
        "\u200d",
        "aa",
        "USER:",
    ]
)
TEXTS = st.lists(PIECES | st.text(st.characters(codec="utf-8"), max_size=5), max_size=12).map(
    "".join
)


def converted(model: Path, folder: Path, **config: Any) -> Path:
    folder.mkdir()
    shutil.copyfile(model, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "out").mkdir()
    place_tokenizer(folder, folder / "out", prefers_model=True)
    return folder / "out"


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    assert MISTRAL is not None
    out = converted(MISTRAL, tmp_path_factory.mktemp("mistral") / "model")
    return (
        Tokenizer.from_file(str(out / "tokenizer.json")),
        spm.SentencePieceProcessor(model_file=str(MISTRAL)),
    )


@needs_mistral
@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_ids_and_text_of_mistral_s_model_are_sentencepiece_s(
    mistral: tuple[Tokenizer, Any], text: str
) -> None:
    ours, theirs = mistral
    # special tokens are the slow tokenizer's own business
    if any(token in text for token in ("<s>", "</s>", "<unk>")):
        return
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


@needs_mistral
@pytest.mark.parametrize("repeated", [" ", "a", "-", "\n", "aa ", "▁"])
def test_repeated_characters_are_joined_from_the_left(
    mistral: tuple[Tokenizer, Any], repeated: str
) -> None:
    ours, theirs = mistral
    for count in range(1, 40):
        text = repeated * count
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@pytest.mark.parametrize("legacy", [True, False, None])
def test_text_between_special_tokens_is_the_slow_tokenizer_s(
    gold_model: dict[bool | None, tuple[ChatTokenizer, Any]], legacy: bool | None, texts: list[str]
) -> None:
    """The rule of transformers 4's slow Llama tokenizer, written with sentencepiece alone."""
    if any(token in text for text in texts for token in ("<s>", "</s>", "<unk>")):
        return
    ours, theirs = gold_model[legacy]
    want: list[int] = []
    for place, text in enumerate(texts):
        want += [2] if place else []
        if legacy is not False:
            want += theirs.encode(text)
        elif text or place == 0:
            # one mark at the beginning, none later: `<unk>` keeps sentencepiece from adding its own
            marked = ("▁" if place == 0 else "") + text.replace("▁", " ")
            skipped = len(theirs.encode("<unk>"))
            bare = theirs.encode("<unk>" + marked)[skipped:]
            want += [] if place == 0 and not text else bare
    assert ours.encode("</s>".join(texts)) == want


@pytest.fixture(scope="module")
def gold_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[bool | None, tuple[ChatTokenizer, Any]]:
    model = DATA / "llava-1.5" / "tokenizer.model"
    made = {}
    for legacy in (True, False, None):
        config = {} if legacy is None else {"legacy": legacy}
        folder = tmp_path_factory.mktemp("gold") / "model"
        out = converted(model, folder, **config)
        prefix = place_tokenizer(folder, out, prefers_model=True).piece_prefix
        chat = ChatFormat(user_role="", assistant_role="", separator="", piece_prefix=prefix)
        made[legacy] = ChatTokenizer(out, chat), spm.SentencePieceProcessor(model_file=str(model))
    return made


@settings(max_examples=100, deadline=None, derandomize=True)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@pytest.mark.parametrize("kind", ["first", "legacy", "no-prefix"])
def test_a_hugging_face_model_alone_has_transformers_ids(
    fast_models: dict[str, tuple[ChatTokenizer, Any]], kind: str, texts: list[str]
) -> None:
    ours, theirs = fast_models[kind]
    text = "</s>".join(texts)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def fast_models(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[ChatTokenizer, Any]]:
    transformers = pytest.importorskip("transformers")
    configs = {"first": {}, "legacy": {"legacy": True}, "no-prefix": {"add_prefix_space": False}}
    made = {}
    for kind, config in configs.items():
        folder = tmp_path_factory.mktemp(kind) / "model"
        out = converted(DATA / "llava-1.5" / "tokenizer.model", folder, **config)
        text = json.dumps({"tokenizer_class": "LlamaTokenizer", **config})
        (folder / "tokenizer_config.json").write_text(text)
        assert place_tokenizer(folder, out, prefers_model=False).piece_prefix == ""
        oracle = transformers.AutoTokenizer.from_pretrained(folder)
        made[kind] = ChatTokenizer(out), oracle
    return made


@pytest.mark.skipif(
    not (FULL_TOKENIZER / "tokenizer.model").is_file(),
    reason=f"no full Jamba tokenizer in {FULL_TOKENIZER}: its conversion is unproven",
)
def test_jamba_s_model_has_the_ids_of_its_own_file(tmp_path: Path) -> None:
    out = converted(FULL_TOKENIZER / "tokenizer.model", tmp_path / "model", **JAMBA_TOKENS)
    place_tokenizer(tmp_path / "model", out, prefers_model=False)
    ours, theirs = ChatTokenizer(out, CHAT), ChatTokenizer(FULL_TOKENIZER, CHAT)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(text=TEXTS)
    def compare(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text)

    compare()


JAMBA_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|unk|>",
    "pad_token": "<|pad|>",
}


def test_tokens_of_the_other_files_are_kept(tmp_path: Path) -> None:
    place_tokenizer(DATA / "llava-1", tmp_path, prefers_model=True)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [(t["id"], t["content"], t["special"]) for t in raw["added_tokens"]] == [
        (0, "<unk>", True),
        (1, "<s>", True),
        (2, "</s>", True),
        (500, "<im_patch>", True),
        (501, "<im_start>", True),
        (502, "<im_end>", True),
    ]


def test_tokens_without_flags_and_ids_are_added_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copyfile(DATA / "llava-1.5" / "tokenizer.model", folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text('{"<image>": 500}')
    special = {"pad_token": "<pad>", "additional_special_tokens": ["<image>", {"content": "<x>"}]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    place_tokenizer(folder, tmp_path, prefers_model=True)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [(t["id"], t["content"], t["special"]) for t in raw["added_tokens"][3:]] == [
        (500, "<image>", True),
        (501, "<pad>", True),
        (502, "<x>", True),
    ]


@pytest.mark.parametrize(("adds", "first"), [({}, [1]), ({"add_bos_token": False}, [])])
def test_the_beginning_is_added_unless_the_checkpoint_says_not(
    tmp_path: Path, adds: dict[str, bool], first: list[int]
) -> None:
    out = converted(DATA / "llava-1.5" / "tokenizer.model", tmp_path / "model", **adds)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    bare = tokenizer.encode("a b", add_special_tokens=False).ids
    assert tokenizer.encode("a b").ids == first + bare


def test_which_of_two_files_decides(tmp_path: Path) -> None:
    checkpoint = DATA / "llava-1.5"
    shipped = (checkpoint / "tokenizer.json").read_bytes()
    place_tokenizer(checkpoint, tmp_path, prefers_model=False)
    assert (tmp_path / "tokenizer.json").read_bytes() == shipped
    place_tokenizer(checkpoint, tmp_path, prefers_model=True)
    assert (tmp_path / "tokenizer.json").read_bytes() != shipped


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        place_tokenizer(tmp_path, tmp_path, prefers_model=True)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: not found, and no tokenizer.model; one of them must be in the folder of config.json"
    )


def test_a_beginning_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    model = (
        (DATA / "llava-1.5" / "tokenizer.model").read_bytes().replace(b"\n\x03<s>", b"\n\x03[s]")
    )
    (tmp_path / "model").write_bytes(model)
    with pytest.raises(CheckpointError) as caught:
        converted(tmp_path / "model", tmp_path / "checkpoint")
    assert str(caught.value) == (
        f"{tmp_path}/checkpoint/tokenizer.model: must hold '<s>', which begins every text; name the right 'bos_token' in "
        "tokenizer_config.json, or set 'add_bos_token' to false there"
    )


def test_a_file_without_the_beginning_that_the_original_adds_is_refused(tmp_path: Path) -> None:
    raw = json.loads((DATA / "llava-1.5" / "tokenizer.json").read_text())
    shutil.copyfile(
        DATA / "llava-1.5" / "tokenizer_config.json", tmp_path / "tokenizer_config.json"
    )
    (tmp_path / "out").mkdir()
    for post_processor in (raw["post_processor"], None):
        raw["post_processor"] = post_processor
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
        if post_processor is not None:
            place_tokenizer(tmp_path, tmp_path / "out", prefers_model=True)
    with pytest.raises(CheckpointError) as caught:
        place_tokenizer(tmp_path, tmp_path / "out", prefers_model=True)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: must put '<s>' before every text, as 'add_bos_token' in tokenizer_config.json says; add "
        "tokenizer.model, or take the checkpoint's own file"
    )


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_damaged_model_is_refused(tmp_path: Path, cut: int) -> None:
    whole = (DATA / "llava-1.5" / "tokenizer.model").read_bytes()
    for content in (whole[:cut], b"version https://git-lfs.github.com/spec/v1\n", b""):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"tokenizer\.model: (not a SentencePiece|must be)"
        ):
            read_sentencepiece(tmp_path / "tokenizer.model")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"model_type": "unigram"}, "its algorithm is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises texts"),
        ({"remove_extra_whitespaces": True}, "it removes spaces"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    tmp_path: Path, options: dict[str, Any], fault: str
) -> None:
    usual = {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": "false" if options.get("model_type") == "unigram" else "true",
    }
    texts = iter(["the cat sat on the mat", "a dog and a cat", "cats and dogs"] * 20)
    path = tmp_path / "made"
    spm.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(path),
        vocab_size=30,
        minloglevel=2,
        **(usual | options),
    )
    with pytest.raises(CheckpointError, match=f"but {fault}; give the checkpoint a tokenizer.json"):
        read_sentencepiece(path.with_suffix(".model"))
