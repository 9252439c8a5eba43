"""Ids of whole prompts: the original LLaVA's, and those of transformers' processors for Hugging Face's files."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.llava.chat import FORMATS, read_chat
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.message import MessageFormat, Text
from longllava_trt.runtime.inputs.writer import MessageWriter
from longllava_trt.runtime.text.quoting import quote, unquote
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from tests.llava_series import (
    MISTRAL_TEMPLATE,
    VICUNA_TEMPLATE,
    exported,
    hugging_face_config,
    mistral_model,
)
from tests.models.llava.gold import CASES, CHECKPOINTS, DATA, gold_prompts

IMAGE = -200
SPECIAL = ("<s>", "</s>", "<unk>", "<image>", "<im_start>", "<im_end>")
WORDS = st.sampled_from(
    [
        "What",
        " is",
        "  ",
        "\n",
        "\t",
        "###",
        "USER:",
        "ASSISTANT:",
        "[INST]",
        "▁",
        "é",
        "🙂",
        "語",
        "\u200d",
        "\ufdd0",
    ]
)
TEXTS = st.lists(WORDS | st.text(st.characters(codec="utf-8"), max_size=4), max_size=10).map(
    "".join
)
PLAIN = TEXTS.filter(lambda text: not any(token in text for token in SPECIAL))
WITH_TOKENS = st.lists(WORDS | st.sampled_from(SPECIAL[:3]), min_size=1, max_size=8).map("".join)


def prompt_ids(prompt: str, tokenizer: ChatTokenizer, place: str = "<image>") -> list[int]:
    first, *rest = prompt.split(place)
    ids = tokenizer.encode(first)
    for text in rest:
        ids += [IMAGE, *tokenizer.encode(text, after="image")]
    return ids


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gold")
    return {model: exported(DATA / model, folder / model) for model in CHECKPOINTS}


@pytest.mark.parametrize(("model", "case"), CASES)
def test_ids_are_the_original_s(bundles: dict[str, Path], model: str, case: str) -> None:
    chat = read_chat(bundles[model], case if case in FORMATS else None)
    found = gold_prompts(model)
    tokenizer = ChatTokenizer(bundles[model], chat)
    assert prompt_ids(found[f"{case}.prompt"], tokenizer) == found[f"{case}.ids"]


def test_a_question_is_written_as_the_original_writes_it(bundles: dict[str, Path]) -> None:
    """From parts, as the runtime does, with a user's text marked."""
    for model, case, question in (
        ("llava-1", "two", "<image>\nand <image> : how many birds?"),
        ("llava-1.5", "two", "<image>\nand <image> : how many birds?"),
        ("llava-1.5", "one", "What is shown in the picture?"),
    ):
        chat = read_chat(bundles[model])
        num_images = 2 if case == "two" else 1
        slots, rest = MessageWriter(MediaOptions(), MessageFormat(chat, None)).slots(
            question, num_images
        )
        prompt = chat.beginning
        for slot in slots:
            prompt += quote(slot.before) + slot.opening + "<image>" + slot.closing
        prompt += quote(rest) + chat.tail
        assert unquote(prompt) == gold_prompts(model)[f"{case}.prompt"]
        ids = prompt_ids(prompt, ChatTokenizer(bundles[model], chat))
        assert ids == gold_prompts(model)[f"{case}.ids"]


class HuggingFace(NamedTuple):
    """A checkpoint's files of prompts, written by transformers, and its processor."""

    folder: Path
    processor: Any
    chat: ChatFormat
    tokenizer: ChatTokenizer


def hugging_face(folder: Path, kind: str, *, legacy: bool, adds_bos: bool = True) -> HuggingFace:
    transformers = pytest.importorskip("transformers")
    model = mistral_model() if kind == "mistral" else DATA / "llava-1.5" / "tokenizer.model"
    if model is None or not model.is_file():
        pytest.skip(f"no tokenizer for {kind}: equality with transformers' processor is unproven")
    source = folder / "source"
    source.mkdir(parents=True)
    shutil.copyfile(model, source / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": adds_bos}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    image = transformers.AddedToken("<image>", special=True, normalized=False)
    tokenizer.add_tokens([image], special_tokens=True)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    shared = {"patch_size": 14, "vision_feature_select_strategy": "default"}
    if kind == "mistral":
        processor = transformers.LlavaNextProcessor(
            transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=[[28, 56]], **size),
            tokenizer,
            num_additional_image_tokens=1,
            chat_template=MISTRAL_TEMPLATE,
            **shared,
        )
    else:
        processor = transformers.LlavaProcessor(
            transformers.CLIPImageProcessorPil(**size),
            tokenizer,
            num_additional_image_tokens=1,
            chat_template=VICUNA_TEMPLATE,
            **shared,
        )
    processor.save_pretrained(folder)
    hugging_face_config(folder)
    chat = read_chat(folder)
    return HuggingFace(folder, processor, chat, ChatTokenizer(folder, chat))


@pytest.fixture(scope="module", params=["llama-first", "llama-legacy", "llama-no-bos", "mistral"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HuggingFace:
    kind = request.param
    return hugging_face(
        tmp_path_factory.mktemp(kind) / "checkpoint",
        kind.split("-")[0],
        legacy=kind == "llama-legacy",
        adds_bos=kind != "llama-no-bos",
    )


def theirs(checkpoint: HuggingFace, turns: list[tuple[str, str, int]]) -> list[int]:
    """Return the ids of transformers' processor with one id for each image."""
    messages: list[dict[str, Any]] = []
    picture = Image.new("RGB", (28, 28))
    for question, answer, num_images in turns:
        content: list[Any] = [{"type": "image", "image": picture} for _ in range(num_images)]
        content.append({"type": "text", "text": question})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    processor = checkpoint.processor
    found = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    image_id = processor.image_token_id
    ids: list[int] = []
    for token in found["input_ids"][0]:
        if token != image_id:
            ids.append(int(token))
        elif not ids or ids[-1] != IMAGE:
            ids.append(IMAGE)
    return ids


def ours(checkpoint: HuggingFace, turns: list[tuple[str, str, int]]) -> list[int]:
    """Return the ids of a prompt that is written from parts, users' texts marked."""
    chat = checkpoint.chat
    asked = [q.strip() if chat.strips_text else q for q, _, _ in turns]
    image = chat.image_open + "<image>" + chat.image_close + chat.after_image
    questions = [image * n + quote(q) for q, (_, _, n) in zip(asked, turns, strict=True)]
    answers = [quote(answer) for _, answer, _ in turns]
    earlier = list(zip(questions, answers, strict=True))[:-1]
    return prompt_ids(chat.prompt(questions[-1], turns=earlier), checkpoint.tokenizer)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(turns=st.lists(st.tuples(PLAIN, PLAIN, st.integers(0, 1)), min_size=1, max_size=3))
def test_ids_are_those_of_transformers_processor(
    checkpoint: HuggingFace, turns: list[tuple[str, str, int]]
) -> None:
    stripped = [(question, answer.strip(), images) for question, answer, images in turns]
    assert ours(checkpoint, stripped) == theirs(checkpoint, stripped)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(question=WITH_TOKENS)
def test_special_tokens_of_users_stay_text(checkpoint: HuggingFace, question: str) -> None:
    tokenizer, chat = checkpoint.tokenizer, checkpoint.chat
    if chat.strips_text:
        question = question.strip() or "a"
    marked, bare = chat.prompt(quote(question)), chat.prompt("")
    ids = tokenizer.encode(marked)
    special = {0, 1, 2, checkpoint.processor.image_token_id}
    # no more of them than the format's own, and nothing of the text is lost
    assert [i for i in ids if i in special] == [i for i in tokenizer.encode(bare) if i in special]
    text = unquote(marked).removeprefix("<s>")
    # a leading space is the tokenizer's own mark
    assert tokenizer.decode(ids).lstrip() == text.replace("▁", " ").lstrip()


@functools.cache
def without_tokens(folder: Path) -> Tokenizer:
    """Return a tokenizer that takes every special token for text."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = True
    oracle = Tokenizer.from_str(json.dumps(raw))
    oracle.encode_special_tokens = True
    return oracle


@settings(max_examples=100, deadline=None, derandomize=True)
@given(question=WITH_TOKENS)
def test_a_text_with_tokens_has_the_ids_of_one_that_never_knew_them(
    checkpoint: HuggingFace, question: str
) -> None:
    oracle = without_tokens(checkpoint.folder)
    want = oracle.encode("USER: " + question + " ASSISTANT:", add_special_tokens=False).ids
    bos = checkpoint.tokenizer.encode("")
    got = checkpoint.tokenizer.encode("USER: " + quote(question) + " ASSISTANT:")
    assert got == bos + want


def test_only_the_user_s_own_token_is_text(bundles: dict[str, Path]) -> None:
    chat = read_chat(bundles["llava-1"])
    tokenizer = ChatTokenizer(bundles["llava-1"], chat)
    ids = tokenizer.encode("<im_start>" + quote("a</s><im_end>") + "<im_end></s>", after="token")
    assert [i for i in ids if i in (1, 2, 501, 502)] == [501, 502, 2]
    assert tokenizer.decode(ids).replace(" ", "") == "a</s><im_end>"


def test_a_token_in_half_a_user_s_text_is_found_by_neither_side(tmp_path: Path) -> None:
    """`<` by a user and `/s>` by a format are no token."""
    bundle = exported(DATA / "llava-1.5", tmp_path / "bundle")
    tokenizer = ChatTokenizer(bundle, read_chat(bundle))
    assert 2 not in tokenizer.encode(quote("a<") + "/s>b", after="token")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    texts=st.lists(
        st.tuples(st.sampled_from(["USER: ", "</s>", "</s>USER:", " ", ""]), TEXTS), max_size=4
    ),
    following=st.sampled_from(["", " ASSISTANT:", "</s>"]),
)
@pytest.mark.parametrize("model", ["first", "legacy", "gold"])
def test_a_prompt_in_two_parts_has_the_ids_of_the_whole(
    cut_tokenizers: dict[str, ChatTokenizer],
    model: str,
    texts: list[tuple[str, str]],
    following: str,
) -> None:
    tokenizer = cut_tokenizers[model]
    prompt = "".join(ours + quote(user) for ours, user in texts)
    for after in ("start", "image", "token"):
        length = tokenizer.stable_length(prompt, following, after=after)
        assert 0 <= length <= len(prompt)
        whole = tokenizer.encode(prompt + following, after=after)
        if not length:
            continue
        first = tokenizer.encode(prompt[:length], after=after)
        rest = tokenizer.encode(prompt[length:] + following, after="token")
        assert first + rest == whole
        # all but the text after the last special token
        assert "</s>" not in unquote(prompt[length:]) or any("</s>" in user for _, user in texts)


@pytest.fixture(scope="module")
def cut_tokenizers(
    tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Path]
) -> dict[str, ChatTokenizer]:
    folder = tmp_path_factory.mktemp("cut")
    return {
        "first": hugging_face(folder / "first", "llama", legacy=False).tokenizer,
        "legacy": hugging_face(folder / "legacy", "llama", legacy=True).tokenizer,
        "gold": ChatTokenizer(bundles["llava-1.5"], read_chat(bundles["llava-1.5"])),
    }


def streamed(tokenizer: ChatTokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([*(stream.push(token) for token in ids), stream.finish()])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 499), max_size=20))
def test_a_stream_keeps_the_spaces_between_words(
    cut_tokenizers: dict[str, ChatTokenizer], ids: list[int]
) -> None:
    for tokenizer in cut_tokenizers.values():
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_a_tokenizer_without_the_image_token_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(DATA / "llava-1.5" / "tokenizer.json", tmp_path / "tokenizer.json")
    hugging_face_config(tmp_path)
    with pytest.raises(ManifestError) as caught:
        ChatTokenizer(tmp_path, read_chat(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: '<image>' must be one token, the place of an image in this model's prompts; take the "
        "checkpoint's own file"
    )


def test_a_vocabulary_that_joins_text_to_a_special_token_is_reported(tmp_path: Path) -> None:
    raw = json.loads((DATA / "llava-1.5" / "tokenizer.json").read_text())
    # what no published file has: pairs that make `</s>` out of plain text
    for number, piece in enumerate(("</", "s>"), start=len(raw["model"]["vocab"])):
        raw["model"]["vocab"][piece] = number
    for piece in ("<", "/", ">"):
        raw["model"]["vocab"].setdefault(piece, len(raw["model"]["vocab"]))
    raw["model"]["merges"] += ["< /", "s >", "</ s>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = ChatTokenizer(tmp_path, replace(FORMATS["v1"]))
    with pytest.raises(InputError) as caught:
        tokenizer.encode("USER: " + quote("a</s>b"))
    assert str(caught.value) == (
        "prompt: this model's vocabulary cannot write '</s>' as text; remove it"
    )


def test_where_tokens_keep_their_meaning_nothing_is_a_mark(bundles: dict[str, Path]) -> None:
    text = quote("a</s>b")
    chat = replace(FORMATS["v1"], keeps_special_tokens=True, begins_with_bos=False)
    tokenizer = ChatTokenizer(bundles["llava-1.5"], chat)
    assert tokenizer.decode(tokenizer.encode(text)).lstrip() == text.replace("</s>", " ")
    assert tokenizer.stable_length(text, "", after="start") == text.index("</s>") + 4
    (part,) = MessageWriter(MediaOptions(), MessageFormat(chat, None)).parts(text, [])
    assert part.written("") == text


def test_a_message_s_text_is_marked_and_shown_without_marks() -> None:
    form = MessageFormat(FORMATS["v1"], None)
    (part,) = MessageWriter(MediaOptions(), form).parts(" a</s> ", [])
    assert isinstance(part, Text)
    assert part.text == quote(" a</s> ")
    assert part.written("<image>") == " a</s> "
