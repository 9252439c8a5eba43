"""Chat formats of the LLaVA series against the prompts that the original code writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import ConfigError, InputError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.chat_file import ChatFile
from longllava_trt.models.llava.chat import FORMATS, read_chat
from tests.llava_series import VICUNA_TEMPLATE, exported, hugging_face_config
from tests.models.llava.gold import CHECKPOINTS, DATA, gold_prompts

QUESTIONS = {
    "text": "Describe the roof. Ünï  two  spaces, 123\nnew line 🙂",
    "one": "What is shown in the picture?",
    "small": "Describe the image.",
}


def image_of(chat: ChatFormat) -> str:
    return chat.image_open + chat.image_placeholder + chat.image_close


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_prompts_are_the_original_s(model: str) -> None:
    chat, want = read_chat(DATA / model), gold_prompts(model)
    for case, question in QUESTIONS.items():
        num_images = 0 if case == "text" else 1
        assert chat.prompt(question, num_images=num_images) == want[f"{case}.prompt"]
    image = image_of(chat)
    two = f"{image}\nand {image} : how many birds?"
    assert chat.prompt(two) == want["two.prompt"]
    turns = [(f"{image}\nWhat is this?", "a red circle")]
    assert chat.prompt("And what is left of it?", turns=turns) == want["turns.prompt"]


@pytest.mark.parametrize("name", ["mistral", "chatml", "llama_2"])
def test_other_formats_are_the_original_s(name: str) -> None:
    chat = read_chat(DATA / "llava-1.6", name)
    assert (
        chat.prompt("What is shown?", num_images=1) == gold_prompts("llava-1.6")[f"{name}.prompt"]
    )
    assert chat.name == name


# the published text of each format after one turn; of the others, the original's own code has written one
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("v0", "###Human: a###Assistant: b###Human: c###Assistant:"),
        ("v1", " USER: a ASSISTANT: b</s>USER: c ASSISTANT:"),
        ("mistral", "[INST] a [/INST] b </s>[INST] c [/INST]"),
        ("llama_2", "\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]"),
        (
            "chatml",
            "<|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|><|im_start|>user\nc<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_a_second_turn(name: str, ending: str) -> None:
    assert FORMATS[name].prompt("c", turns=[("a", "b")]).endswith(ending)


@pytest.mark.parametrize(
    ("folder", "config", "name"),
    [
        ("llava-1.5-7b", {}, "v1"),
        ("llava", {"mm_use_im_start_end": True}, "v0"),
        ("llava-7b-v0", {}, "v0"),
        ("LLaVA-7B-v1", {"mm_use_im_start_end": True}, "v1"),
        ("llava-v1.6-vicuna-7b", {}, "v1"),
        ("llava-v1.6-mistral-7b", {}, "mistral"),
        ("llava-v1.6", {"model_type": "llava_mistral"}, "mistral"),
        ("llava-v1.6-34b", {}, "chatml"),
        ("llava-llama-2-13b-chat", {}, "llama_2"),
        ("weights", {"_name_or_path": "./llava-v1.6-34b"}, "chatml"),
        ("hf", {"text_config": {"model_type": "mistral"}, "vision_config": {}}, "mistral"),
        ("hf", {"text_config": {"model_type": "llama"}, "vision_config": {}}, "v1"),
    ],
)
def test_a_checkpoint_chooses_its_format(
    tmp_path: Path, folder: str, config: dict[str, Any], name: str
) -> None:
    checkpoint = tmp_path / folder
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "llava_llama", **config}))
    assert read_chat(checkpoint).name == name


def test_a_bundle_keeps_the_format_under_another_name(tmp_path: Path) -> None:
    bundle = exported(DATA / "llava-1", tmp_path / "llava-v1.6-34b")
    assert read_chat(bundle) == read_chat(DATA / "llava-1")
    assert read_chat(bundle, "chatml").name == "chatml"


def test_an_original_checkpoint_s_text_template_is_used_on_request_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    (tmp_path / "chat_template.jinja").write_text(VICUNA_TEMPLATE)
    assert read_chat(tmp_path).name == "v1"
    assert read_chat(tmp_path, "template").prompt("a") == "USER: a ASSISTANT:"


def test_an_unknown_format_lists_all(tmp_path: Path) -> None:
    hugging_face_config(tmp_path)
    with pytest.raises(InputError) as caught:
        read_chat(tmp_path, "vicuna")
    assert str(caught.value) == (
        "run: prompt_format must be one of v0, v1, mistral, llama_2, chatml, got 'vicuna'"
    )
    (tmp_path / "chat_template.jinja").write_text(VICUNA_TEMPLATE)
    with pytest.raises(InputError, match="llama_2, chatml, template, got 'vicuna'"):
        read_chat(tmp_path, "vicuna")


def test_a_damaged_file_of_a_bundle_is_reported(tmp_path: Path) -> None:
    hugging_face_config(tmp_path)
    (tmp_path / "chat_format.json").write_text('{"prompt_format": 1}')
    with pytest.raises(ConfigError) as caught:
        ChatFile.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/chat_format.json: must have the texts prompt_format, piece_prefix, got {{'prompt_format': 1}}; "
        "export the bundle again"
    )
