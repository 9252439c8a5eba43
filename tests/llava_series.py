"""Checkpoints of the LLaVA series for tests of prompts: what the original made of its own, and Hugging Face's format."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from longllava_trt.export.tokenizer import place_tokenizer
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.llava.chat import read_chat

VICUNA_TEMPLATE = """{% for message in messages %}{% if message['role'] != 'system' %}\
{{ message['role'].upper() + ': '}}{% endif %}{# images first #}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% if message['role'] == 'assistant' %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}\
{% else %}{{ content['text'] + ' '}}{% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

MISTRAL_TEMPLATE = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '[INST] ' }}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\n' }}\
{% else %}{{ content['text'] | trim }}{% endif %}{% endfor %}{{ ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + eos_token }}\
{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"""

PARTS_OF_TEXT_TEMPLATE = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def mistral_model() -> Path | None:
    """Return Mistral's own SentencePiece model, if its package is there."""
    spec = find_spec("mistral_common")
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).parent / "data" / "tokenizer.model.v1"


def exported(checkpoint: Path, bundle: Path) -> Path:
    """Write what an export writes of prompts."""
    bundle.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.glob("*.json"):
        if file.name != "tokenizer.json":
            shutil.copyfile(file, bundle / file.name)
    chat = read_chat(checkpoint)
    placed = place_tokenizer(checkpoint, bundle, prefers_model=chat.reads_sentencepiece)
    ChatFile(prompt_format=chat.name, piece_prefix=placed.piece_prefix).write(bundle)
    return bundle


def hugging_face_config(folder: Path, *, text: str = "llama") -> None:
    """Write a config.json by which a folder is known as Hugging Face's format."""
    raw = {"model_type": "llava", "text_config": {"model_type": text}, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(raw))
