"""Chat format of a text-only Jamba: its tokenizer's template, or nothing around a text to be continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.chat_template import TEMPLATE, find_template, format_of_template

__all__ = ["CHAT", "read_chat"]

CHAT = ChatFormat(
    name="plain",
    user_role="",
    assistant_role="",
    separator="",
    image_placeholder="",
    after_image="",
    keeps_special_tokens=False,
    begins_with_bos=True,
)
"""Of a base model: the text itself."""


def read_chat(folder: Path, prompt_format: str | None = None) -> ChatFormat:
    """Return the chat format of a checkpoint or bundle.

    Args:
        folder: Checkpoint or bundle.
        prompt_format: Name of another format than its own.

    Raises:
        InputError: If the name is not known.
        ConfigError: If a file is damaged, or the checkpoint's template cannot be used.
    """
    kept, has_template = ChatFile.read(folder), find_template(folder) is not None
    own = kept.prompt_format if kept else (TEMPLATE if has_template else CHAT.name)
    name = prompt_format or own
    if name == CHAT.name:
        return CHAT
    # a tokenizer's template writes the beginning too, or there is none
    chat = format_of_template(folder, replace(CHAT, begins_with_bos=False))
    if name == TEMPLATE and chat is not None:
        return chat
    known = [CHAT.name, *([TEMPLATE] if has_template else [])]
    raise InputError(f"run: prompt_format must be one of {', '.join(known)}, got '{name}'")
