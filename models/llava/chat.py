"""Chat formats of the LLaVA series by name, and which of them a checkpoint uses.

A checkpoint in Hugging Face's format has a template, and texts around images are tokenized as one. In the original's format
names are the only hint, and each text around an image is tokenized on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import InputError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.chat_template import TEMPLATE, find_template, format_of_template

__all__ = ["CHAT", "FORMATS", "read_chat"]

_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the human's questions."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)

_BASE = ChatFormat(
    user_role="",
    assistant_role="",
    separator="",
    keeps_special_tokens=False,
    begins_with_bos=True,
    # frames are images
    between_frames="\n",
    video_close="\n",
)

CHAT = replace(
    _BASE,
    name="v1",
    prefix=f"{_SYSTEM} ",
    user_role="USER: ",
    separator=" ",
    assistant_role="ASSISTANT:",
    before_answer=" ",
    answer_end="</s>",
)
"""Format of most checkpoints: Vicuna's."""

FORMATS: Mapping[str, ChatFormat] = {
    "v0": replace(
        _BASE,
        name="v0",
        prefix=f"{_SYSTEM}###",
        user_role="Human: ",
        separator="###",
        assistant_role="Assistant:",
        before_answer=" ",
        answer_end="###",
        stop=("###",),
    ),
    "v1": CHAT,
    "mistral": replace(
        _BASE,
        name="mistral",
        user_role="[INST] ",
        separator=" [/INST]",
        before_answer=" ",
        answer_end=" </s>",
    ),
    "llama_2": replace(
        _BASE,
        name="llama_2",
        prefix=f"[INST] <<SYS>>\n{_LLAMA_2_SYSTEM}\n<</SYS>>\n\n",
        separator=" [/INST]",
        before_answer=" ",
        # the system's text is in the first turn alone
        answer_end=" </s><s>[INST] ",
    ),
    "chatml": replace(
        _BASE,
        name="chatml",
        prefix="<|im_start|>system\nAnswer the questions.<|im_end|>",
        user_role="<|im_start|>user\n",
        separator="<|im_end|>",
        assistant_role="<|im_start|>assistant\n",
        stop=("<|im_end|>",),
    ),
}
"""Formats by name."""

_HINTS = {
    "llama-2": "llama_2",
    "mistral": "mistral",
    "34b": "chatml",
    "v1": "v1",
    "v0": "v0",
}
"""Parts of names, the first that fits deciding, and the formats of models with them."""


def read_chat(folder: Path, prompt_format: str | None = None) -> ChatFormat:
    """Return the chat format of a checkpoint or bundle of the series.

    Args:
        folder: Checkpoint or bundle.
        prompt_format: Name of another format than its own.

    Raises:
        InputError: If the name is not known.
        ConfigError: If a file is damaged, or the checkpoint's template cannot be used.
    """
    raw = read_json_object(folder / "config.json", whose="a checkpoint has it beside its weights")
    kept = ChatFile.read(folder)
    is_original = "vision_config" not in raw and "text_config" not in raw
    name = prompt_format or (kept.prompt_format if kept else _own_format(folder, raw, is_original))
    has_tags = is_original and raw.get("mm_use_im_start_end") is True
    chat = replace(
        FORMATS.get(name, _BASE),
        joins_text=not is_original,
        reads_sentencepiece=is_original,
        piece_prefix=kept.piece_prefix if kept else "",
        image_open="<im_start>" if has_tags else "",
        image_close="<im_end>" if has_tags else "",
    )
    found = format_of_template(folder, chat) if name == TEMPLATE else chat
    if found is not None and name in (*FORMATS, TEMPLATE):
        return found
    known = [*FORMATS, *([TEMPLATE] if find_template(folder) else [])]
    raise InputError(f"run: prompt_format must be one of {', '.join(known)}, got '{name}'")


def _own_format(folder: Path, raw: Mapping[str, Any], is_original: bool) -> str:
    """Return the name of the format that a checkpoint was trained with, as far as it says so."""
    if not is_original and find_template(folder):
        return TEMPLATE
    text = raw.get("text_config")
    kinds = [raw.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    # the kinds before the name: `v1.6` is in all names of one generation
    for names in ([*kinds, folder.resolve().name], [raw.get("_name_or_path")]):
        words = " ".join(map(str, names)).lower()
        for hint, name in _HINTS.items():
            if hint in words:
                return name
    # only the first models have these tokens
    return "v0" if raw.get("mm_use_im_start_end") is True else CHAT.name
