"""A small tokenizer in the form of the published one, trained on the text below when needed.

It has the file layout, normalizer, decoder, byte fallback and special ids of the published
tokenizer, so that the same code reads both, and a piece for each part of the chat format's markers.
Two trainings give the same file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, models, trainers

from longllava_trt.core.errors import InputError

__all__ = [
    "BYTE_IDS",
    "SPECIAL_TOKENS",
    "TEXT_VOCABULARY",
    "tokenizer_files",
    "train_tokenizer",
]

SPECIAL_TOKENS = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unk|>")
"""Special tokens; the index is the id."""

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
BYTE_IDS = range(len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + len(_BYTES))
"""Ids of the pieces for single bytes, which spell characters that the vocabulary lacks."""

TEXT_VOCABULARY = 512
"""Number of ids that the text below can fill; a larger vocabulary has ids that no text gives."""

# each is one piece of the published vocabulary; `<` and `>` stay apart from the words between them
_MARKERS = ("<", "|", "User", "Assistant", "|>", "img", "vid", ">", "</", "t", "><", "></")
# enough that every marker's merges come before those of the text
_MARKER_WEIGHT = 1000

_TEXT = """
The photograph shows a quiet street in the morning. A woman with a red umbrella is walking past the old houses.
In the foreground there is a wooden table with a white cup of coffee, a small plate and two silver spoons.
What does the picture show? What is in the image? Describe this image in detail, including the main subject and background.
The first image shows a cat that is sleeping on the window, and the second image shows a brown dog running over the grass.
How many people are there in the photo? There are three people in the photo, and one of them is holding a camera.
Compare these images. Which of the pictures was taken at night? The last one was taken at night, under a dark sky.
The rocket is standing on the launch pad in front of the sea. White smoke is rising, and the light of the fire is bright.
On the left side there is a tall tree; on the right side there is a stone wall, and behind it are green hills and clouds.
Hello! The camera moves slowly from the mountain to the lake, then along the river, and the water is blue and still.
What happens in the video? A man is opening the door, then the children are coming into the room with some flowers.
It was raining, so the colours of the street look soft: grey, green, brown and a little yellow from the lamps.
The face of the clock says 10:25. Numbers such as 3, 4, 6, 7, 8 and 9 can be read on the sign above the shop.
There is no text in the image. The scene looks like a market, with boxes of fruit, bread, fish and many other things.
An astronaut in an orange suit is smiling at the camera. Behind her there are a flag and a model of the space shuttle.
Just before sunset the shadows are long; every object near the beach, even the quiet boats, gets a warm golden edge.
"""


def train_tokenizer(
    vocab_size: int, added: Mapping[str, int] | None = None, *, adds_beginning: bool = False
) -> str:
    """Train a tokenizer and return the text of its tokenizer.json.

    Args:
        vocab_size: Number of ids: special tokens, bytes, characters, then merged pieces.
        added: Further special tokens with their ids.
        adds_beginning: Whether it puts the token of the beginning before a text.

    Raises:
        InputError: If the text is too short for `vocab_size` ids, or the ids are too few for its
            characters and the markers.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *_BYTES], show_progress=False
    )
    # merges must not cross words or digits; the trained file has no pre-tokenizer that prevents it
    words = re.findall(r"▁?[A-Za-z]+|▁?[^\sA-Za-z▁]", _TEXT.replace(" ", "▁"))
    tokenizer.train_from_iterator([*words, *_MARKERS * _MARKER_WEIGHT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    missing = [marker for marker in _MARKERS if marker not in model["vocab"]]
    if missing or len(model["vocab"]) != vocab_size:
        raise InputError(
            f"synthetic tokenizer: vocab_size {vocab_size} gives {len(model['vocab'])} pieces and "
            f"leaves out {missing or 'no marker'}; choose about 512"
        )
    form = _published_form(model)
    if adds_beginning:
        form["post_processor"] = _beginning()
    form["added_tokens"] += [{"id": i, **_added_token(token)} for token, i in (added or {}).items()]
    return _json(form)


def tokenizer_files(
    vocab_size: int, added: Mapping[str, int] | None = None, *, adds_beginning: bool = False
) -> dict[str, str]:
    """Return the texts of a checkpoint's three tokenizer files by file name.

    Args:
        vocab_size: Number of ids that texts give.
        added: Further special tokens with their ids, which are larger.
        adds_beginning: Whether the tokenizer puts the token of the beginning before a text, as its
            config says; the published file of LongLLaVA does not.
    """
    tokens = dict(enumerate(SPECIAL_TOKENS)) | {i: token for token, i in (added or {}).items()}
    pad, bos, eos, unk = SPECIAL_TOKENS
    special = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): _added_token(t) for i, t in tokens.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        "spaces_between_special_tokens": False,
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
        **special,
    }
    return {
        "tokenizer.json": train_tokenizer(vocab_size, added, adds_beginning=adds_beginning),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
    }


def _beginning() -> dict[str, Any]:
    """Return the part of a tokenizer.json that puts the token of the beginning before a text."""
    _, bos, *_ = SPECIAL_TOKENS
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, *texts],
        "special_tokens": {bos: {"id": bos, "ids": [SPECIAL_TOKENS.index(bos)], "tokens": [bos]}},
    }


def _published_form(model: dict[str, Any]) -> dict[str, Any]:
    """Wrap trained pieces as the published tokenizer.json does: no pre-tokenizer, spaces as `▁`."""
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **_added_token(t)} for i, t in enumerate(SPECIAL_TOKENS)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model | {"unk_token": "<|unk|>", "fuse_unk": True, "byte_fallback": True},
    }


def _added_token(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": True}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
