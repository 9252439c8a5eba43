"""Formats cut out of chat templates, against transformers, which renders the templates themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longllava_trt.core.errors import ConfigError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.chat_template import find_template, format_of_template
from tests.llava_series import MISTRAL_TEMPLATE, PARTS_OF_TEXT_TEMPLATE, VICUNA_TEMPLATE

BASE = ChatFormat(user_role="", assistant_role="", separator="", begins_with_bos=True)
TEXT_BASE = replace(BASE, image_placeholder="")
TOKENS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
TEMPLATES = {
    "vicuna": VICUNA_TEMPLATE,
    "mistral": MISTRAL_TEMPLATE,
    "chatml": PARTS_OF_TEXT_TEMPLATE,
}


def write(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENS))
    return folder


def rendered(template: str, messages: list[dict[str, Any]]) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = utils.render_jinja_template(
        [messages],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(texts[0])


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(turns=st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2)), min_size=1, max_size=3))
def test_a_format_writes_what_its_template_writes(
    tmp_path_factory: pytest.TempPathFactory, name: str, turns: list[tuple[str, str, int]]
) -> None:
    folder = write(tmp_path_factory.mktemp(name), TEMPLATES[name])
    chat = format_of_template(folder, BASE)
    assert chat is not None
    assert chat.name == "template"
    messages, ours = [], []
    for question, answer, num_images in turns:
        parts: list[dict[str, str]] = [{"type": "image"}] * num_images
        # the runtime strips answers, and questions where the template does
        content: Any = [*parts, {"type": "text", "text": question}]
        said: Any = [{"type": "text", "text": answer.strip()}]
        if name == "chatml":
            content, said = "<image>\n" * num_images + question, answer.strip()
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
        asked = question.strip() if chat.strips_text else question
        ours.append(("<image>\n" * num_images + asked, answer.strip()))
    last = ours.pop()[0]
    assert chat.prompt(last, turns=ours) == rendered(TEMPLATES[name], messages[:-1])


def test_a_template_that_writes_the_beginning_itself_needs_no_other(tmp_path: Path) -> None:
    mistral = format_of_template(write(tmp_path, MISTRAL_TEMPLATE), BASE)
    assert mistral is not None
    assert (mistral.prefix, mistral.begins_with_bos, mistral.strips_text) == (
        "<s>[INST] ",
        False,
        True,
    )
    vicuna = format_of_template(write(tmp_path, VICUNA_TEMPLATE), BASE)
    assert vicuna is not None
    assert (vicuna.prefix, vicuna.begins_with_bos, vicuna.strips_text) == ("USER: ", True, False)


def test_markup_around_an_image_belongs_to_it_and_white_space_does_not(tmp_path: Path) -> None:
    template = VICUNA_TEMPLATE.replace("'<image>\n'", "'<im_start><image><im_end>\n'")
    chat = format_of_template(write(tmp_path, template), BASE)
    assert chat is not None
    assert (chat.image_open, chat.image_close, chat.after_image) == ("<im_start>", "<im_end>", "\n")


def test_a_text_model_s_template_gets_texts(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}{{ '[assistant]' }}"
    )
    chat = format_of_template(write(tmp_path, template), TEXT_BASE)
    assert chat is not None
    assert chat.prompt("c", turns=[("a", "b")]) == "[user]a[assistant]b[user]c[assistant]"


@pytest.mark.parametrize(
    "file", ["chat_template.json", "processor_config.json", "tokenizer_config.json"]
)
def test_a_template_is_found_in_every_file(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(json.dumps({"chat_template": "x"}))
    assert find_template(tmp_path) == ("x", f"{tmp_path / file}: chat_template")
    named = [{"name": "tool_use", "template": "y"}, {"name": "default", "template": "z"}]
    (tmp_path / file).write_text(json.dumps({"chat_template": named}))
    assert find_template(tmp_path) == ("z", f"{tmp_path / file}: chat_template")


def test_without_a_template_there_is_no_format(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None
    assert format_of_template(tmp_path, BASE) is None


THREE_TURNS = "USER: a ASSISTANT: 1 USER: b { ASSISTANT: 2\\n3 USER: c ASSISTANT:"
ADVICE = "; choose another format with --prompt-format"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in", "not a Jinja template (unexpected 'end of template' in line 1)"),
        ("{{ raise_exception('only for tools') }}", "it raises TemplateError: only for tools"),
        ("{{ messages[7].role }}", "it raises UndefinedError: list object has no element 7"),
        (
            "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
            "it does not end within 100000 steps",
        ),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "it raises RecursionError: maximum recursion depth exceeded",
        ),
        ("{{ 'a' * 10 ** 9 }}", "it raises TemplateError: '*' of a number above 1000000"),
        ("{{ ''.__class__ }}{{ messages.append(1) }}", "it raises SecurityError: "),
        ("hello", "it writes the text of a message in another form, or not at all"),
        (
            "{{ messages[-1].content }}{{ messages[-1].content }}",
            "it writes the text of a message more than once",
        ),
        (
            VICUNA_TEMPLATE.replace("'ASSISTANT:'", "'ASSISTANT: let us see'"),
            "it writes ' ASSISTANT: ' before an earlier answer, but ends a prompt with ' ASSISTANT: let us see'",
        ),
        (
            VICUNA_TEMPLATE + "{% if messages | length == 5 %}!{% endif %}",
            f"it writes three turns in a way that no format can, '{THREE_TURNS}!' instead of '{THREE_TURNS}'",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(
    tmp_path: Path, template: str, message: str
) -> None:
    folder = write(tmp_path, template)
    with pytest.raises(ConfigError) as caught:
        format_of_template(folder, BASE)
    line = str(caught.value)
    assert line.startswith(f"{folder}/chat_template.jinja: {message}")
    assert "\n" not in line
    assert line.endswith(ADVICE)
