"""Prompts of text-only Jamba: its tokenizer's template as transformers applies it, or the text alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from longllava_trt.core.errors import InputError
from longllava_trt.models.jamba.chat import CHAT, read_chat
from longllava_trt.runtime.inputs.images import MessageFormat, Text
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.writer import MessageWriter
from longllava_trt.runtime.text.quoting import quote
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ '<|bom|>' + message['role'] + ' ' + message['content'] \
+ '<|eom|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|bom|>assistant ' }}{% endif %}"""
TOKENS = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|bom|>", "<|eom|>")
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda text: not any(token in text for token in TOKENS)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with special tokens around messages."""
    made = tmp_path_factory.mktemp("jamba")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=list(TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", 1)]
    )
    tokenizer.save(str(made / "tokenizer.json"))
    config = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@settings(max_examples=60, deadline=None, derandomize=True)
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_ids_are_those_of_the_tokenizer_s_template(
    folder: Path, turns: list[tuple[str, str]]
) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<|startoftext|>",
        chat_template=TEMPLATE,
    )
    messages = []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    want = oracle.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    chat = read_chat(folder)
    earlier = [(quote(question), quote(answer)) for question, answer in turns[:-1]]
    prompt = chat.prompt(quote(turns[-1][0]), turns=earlier)
    assert ChatTokenizer(folder, chat).encode(prompt) == want


def test_a_model_without_a_template_continues_the_text(folder: Path) -> None:
    chat = read_chat(folder, "plain")
    assert chat == CHAT
    # the beginning once, and a special token of a user is text
    ids = ChatTokenizer(folder, chat).encode(chat.prompt(quote("a<|eom|>")))
    assert ids[0] == 1
    assert 4 not in ids


def test_a_text_model_has_no_places_of_images() -> None:
    form = MessageFormat(CHAT, None)
    (part,) = MessageWriter(MediaOptions(), form).parts("what is <image>?", [])
    assert isinstance(part, Text)
    assert part.written("") == "what is <image>?"


def test_an_unknown_format_lists_all(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_chat(folder, "v1")
    assert str(caught.value) == "run: prompt_format must be one of plain, template, got 'v1'"
    with pytest.raises(InputError) as caught:
        read_chat(tmp_path, "template")
    assert str(caught.value) == "run: prompt_format must be one of plain, got 'template'"
