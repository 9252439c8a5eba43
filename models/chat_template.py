"""A checkpoint's own chat template, as a chat format: cut out of what it writes for a few conversations, then proven.

Prompts are written from the format, never by the template. A template whose prompts no format can write, such as one that
writes later turns in another way, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.chat import ChatFormat

if TYPE_CHECKING:
    from longllava_trt.models.jinja_template import JinjaTemplate

__all__ = ["TEMPLATE", "TEMPLATE_FILES", "find_template", "format_of_template"]

TEMPLATE = "template"
"""Name of the format of a checkpoint's own template."""

_JINJA_FILE = "chat_template.jinja"
_JSON_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
TEMPLATE_FILES = (_JINJA_FILE, *_JSON_FILES, "special_tokens_map.json")
"""Files with the template and with special tokens that it writes."""

_Style = Literal["parts", "text"]
"""Content of a message as a list of parts, or as one text."""

_FIRST, _ANSWER, _SECOND = "zqx1", "zqx2", "zqx3"
"""Texts that no template writes itself."""


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation that a template is asked to write."""

    what: str
    """Description for errors."""
    question: str
    num_images: int = 0
    turns: tuple[tuple[str, str], ...] = ()


_PROOF = (
    _Talk("one question", "What is this?"),
    _Talk("a question of several lines", "Caf\u00e9,\n\n  two  'spaces' <b>&amp; {{ x }}"),
    _Talk("a question with white space around it", " \n a b \t\n"),
    _Talk("two turns", "And this?", turns=(("What is this?", "A cat."),)),
    _Talk("three turns", "c", turns=(("a", "1"), ("b {", "2\n3"))),
)
_PROOF_OF_IMAGES = (
    _Talk("an image and a question", "What is this?", 1),
    _Talk("three images and a question", "What are these?", 3),
    _Talk("an image in the second turn", "And this?", 1, (("What is this?", "A cat."),)),
)


def find_template(folder: Path) -> tuple[str, str] | None:
    """Return the template of a checkpoint or bundle, and where it is; None if there is none."""
    path = folder / _JINJA_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except (OSError, ValueError) as err:
            raise ConfigError(f"{path}: cannot be read as text ({err})") from err
    for name in _JSON_FILES:
        path = folder / name
        raw = read_json_object(path, whose="a checkpoint's file") if path.is_file() else {}
        value = raw.get("chat_template")
        if isinstance(value, list):
            named = {
                each.get("name"): each.get("template") for each in value if isinstance(each, dict)
            }
            value = named.get("default")
        if value is None:
            continue
        if not isinstance(value, str):
            raise ConfigError(f"{path}: 'chat_template' must be a text, got {value!r}")
        return value, f"{path}: chat_template"
    return None


def format_of_template(folder: Path, base: ChatFormat) -> ChatFormat | None:
    """Return the format of the template in a folder, or None if there is none.

    Args:
        folder: Checkpoint or bundle.
        base: What the template does not say, such as the place of an image.

    Raises:
        ConfigError: If it fails, does not end, or no format writes the same.
    """
    found = find_template(folder)
    if found is None:
        return None
    tokens = _special_tokens(folder)
    try:
        chat = _proven(*found, tokens, base)
    except ConfigError as err:
        raise ConfigError(f"{err}; choose another format with --prompt-format") from err
    # what the template begins with itself, the tokenizer does not add again
    bos = tokens.get("bos_token")
    begins = base.begins_with_bos and not (bos and chat.prefix.startswith(bos))
    return replace(chat, begins_with_bos=begins)


def _proven(source: str, where: str, tokens: Mapping[str, str], base: ChatFormat) -> ChatFormat:
    """Return a template's format in the first style in which it writes messages."""
    from longllava_trt.models.jinja_template import JinjaTemplate

    template = JinjaTemplate(source, where)
    styles: tuple[_Style, ...] = ("parts", "text") if base.image_placeholder else ("text", "parts")
    faults = []
    for style in styles:
        writer = _Writer(template, tokens, style, base.image_placeholder)
        try:
            chat = _derive(writer, base)
        except ConfigError as err:
            faults.append(err)
            continue
        writer.prove(chat)
        return chat
    raise faults[0]


@dataclass(frozen=True, slots=True)
class _Writer:
    """A template that writes conversations in one style."""

    template: JinjaTemplate
    tokens: Mapping[str, str]
    style: _Style
    placeholder: str

    def write(self, talk: _Talk) -> str:
        """Return the prompt of a conversation."""
        messages: list[dict[str, Any]] = []
        for question, answer in talk.turns:
            messages += [self._message("user", question), self._message("assistant", answer)]
        messages.append(self._message("user", talk.question, talk.num_images))
        given = {"messages": messages, "tools": None, "documents": None}
        return self.template.render({**self.tokens, **given, "add_generation_prompt": True})

    def around(self, talk: _Talk, *texts: str) -> list[str]:
        """Return what a template writes around texts."""
        written, around = self.write(talk), []
        for text in texts:
            before, found, written = written.partition(text)
            if not found or text in written:
                times = "more than once" if found else "in another form, or not at all"
                raise ConfigError(f"{self.template.where}: it writes the text of a message {times}")
            around.append(before)
        if self.style == "parts" and any("'type': 'text'" in text for text in around):
            raise ConfigError(f"{self.template.where}: it writes a list of parts as it is")
        return [*around, written]

    def prove(self, chat: ChatFormat) -> None:
        """Raise an error if a format does not write what the template writes."""
        for talk in self._proof():
            question = talk.question.strip() if chat.strips_text else talk.question
            ours = chat.prompt(question, num_images=talk.num_images, turns=talk.turns)
            theirs = self.write(talk)
            if ours != theirs:
                raise ConfigError(
                    f"{self.template.where}: it writes {talk.what} in a way that no format can, {theirs!r} instead of "
                    f"{ours!r}"
                )

    def _proof(self) -> Iterator[_Talk]:
        yield from _PROOF
        if self.placeholder:
            yield from _PROOF_OF_IMAGES
            # a question may hold the places of its images
            yield _Talk("an image inside of a question", f"What is in {self.placeholder}\n?")

    def _message(self, role: str, text: str, num_images: int = 0) -> dict[str, Any]:
        if self.style == "text":
            return {"role": role, "content": f"{self.placeholder}\n" * num_images + text}
        images: Sequence[dict[str, str]] = [{"type": "image"}] * num_images
        return {"role": role, "content": [*images, {"type": "text", "text": text}]}


def _derive(writer: _Writer, base: ChatFormat) -> ChatFormat:
    """Return a format cut out of what a template writes."""
    before, after = writer.around(_Talk("", _FIRST), _FIRST)
    turns = _Talk("", _SECOND, turns=((_FIRST, _ANSWER),))
    _, before_answer, between, _ = writer.around(turns, _FIRST, _ANSWER, _SECOND)
    if not before_answer.startswith(after):
        raise ConfigError(
            f"{writer.template.where}: it writes {before_answer!r} before an earlier answer, but ends a prompt with {after!r}"
        )
    spaced = f" \n{_FIRST}\n "
    opening, closing, following = _image_texts(writer, before)
    return replace(
        base,
        name=TEMPLATE,
        prefix=before,
        user_role="",
        separator="",
        assistant_role=after,
        before_answer=before_answer.removeprefix(after),
        answer_end=between,
        strips_text=spaced not in writer.write(_Talk("", spaced)),
        image_open=opening,
        image_close=closing,
        after_image=following,
        between_frames=following,
        video_close=following,
    )


def _image_texts(writer: _Writer, before: str) -> tuple[str, str, str]:
    """Return the texts before and after an image that belong to it, and the text before the question."""
    place = writer.placeholder
    if not place:
        return "", "", ""
    opening, after = writer.around(_Talk("", _FIRST, 1), place)
    following = after.partition(_FIRST)[0]
    opening = opening.removeprefix(before)
    # markup belongs to an image wherever it stands; white space alone parts it from the question
    closing = following.rstrip() if opening else ""
    return opening, closing, following.removeprefix(closing)


def _special_tokens(folder: Path) -> dict[str, str]:
    """Return the texts of special tokens by their names, such as `bos_token`."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        raw = read_json_object(path, whose="a checkpoint's file") if path.is_file() else {}
        for key, value in raw.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found.setdefault(key, text)
    return found
