"""The chat protocol against the gold id vectors of the original (see data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.core.errors import InputError
from longllava_trt.reference.prompt import (
    IMAGE_TOKEN_INDEX,
    build_prompt,
    expand_tiles,
    prompt_length,
    tokenize_prompt,
    wrap_images,
    wrap_video,
)
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from tests.full_tokenizer import FULL_TOKENIZER

DATA = Path(__file__).parents[1] / "runtime" / "text" / "data"
GOLD: list[dict[str, Any]] = json.loads((DATA / "gold_prompts.json").read_text(encoding="utf-8"))
STILLS = [vector for vector in GOLD if vector["question"] is not None]
NUM_IMAGE_TOKENS = 144


@pytest.fixture(scope="module", params=["reduced", "full"])
def tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    if request.param == "reduced":
        return ChatTokenizer(DATA / "reduced-tokenizer")
    if not (FULL_TOKENIZER / "tokenizer.json").is_file():
        pytest.skip(
            f"no full Jamba tokenizer in {FULL_TOKENIZER}: gold ids are proven on the reduced one only"
        )
    return ChatTokenizer(FULL_TOKENIZER)


@pytest.mark.parametrize("vector", STILLS, ids=lambda vector: vector["name"])
def test_question_about_stills_gives_the_gold_ids(
    vector: dict[str, Any], tokenizer: ChatTokenizer
) -> None:
    prompt = build_prompt(wrap_images(vector["question"], num_images=vector["num_images"]))
    assert prompt == vector["prompt"]
    ids = tokenize_prompt(prompt, tokenizer)
    assert ids == vector["ids"]
    assert prompt_length(ids, NUM_IMAGE_TOKENS) == vector["positions"]


@pytest.mark.parametrize("vector", GOLD, ids=lambda vector: vector["name"])
def test_literal_prompt_gives_the_gold_ids(
    vector: dict[str, Any], tokenizer: ChatTokenizer
) -> None:
    ids = tokenize_prompt(vector["prompt"], tokenizer)
    assert ids == vector["ids"]
    assert prompt_length(ids, NUM_IMAGE_TOKENS) == vector["positions"]


def test_lengths_are_those_of_the_specification(tokenizer: ChatTokenizer) -> None:
    one_image = tokenize_prompt(GOLD[1]["prompt"], tokenizer)
    assert (len(one_image), prompt_length(one_image, NUM_IMAGE_TOKENS)) == (27, 170)
    isolated = tokenize_prompt("<img><image></img>", tokenizer)
    assert prompt_length(isolated, NUM_IMAGE_TOKENS) == 150
    # the stored videos: 151 * 2 + 16 + a question of 3 ids
    assert [v["positions"] for v in GOLD if "video" in v["name"]] == [321, 321]


def test_chunks_are_tokenised_independently(tokenizer: ChatTokenizer) -> None:
    gold = GOLD[1]
    joined = tokenizer.encode(gold["prompt"].replace("<image>", ""))
    assert joined != [i for i in gold["ids"] if i != IMAGE_TOKEN_INDEX]


@pytest.mark.parametrize("num_images", [1, 2, 5])
def test_question_without_placeholders_shows_the_images_first(num_images: int) -> None:
    wrapped = wrap_images("What is this?", num_images=num_images)
    assert wrapped == "<img><image></img>\n" * num_images + "What is this?"


def test_placeholders_stay_where_the_user_put_them() -> None:
    wrapped = wrap_images("First <image> and second <image>.", num_images=2)
    assert wrapped == "First <img><image></img> and second <img><image></img>."


@pytest.mark.parametrize(
    "query",
    ["<img><image></img>\nWhat is this?", "<img><image></img><image>, both bare and wrapped"],
    ids=["wrapped", "half-wrapped"],
)
def test_text_with_a_closing_tag_is_left_as_it_is(query: str) -> None:
    assert wrap_images(query, num_images=query.count("<image>")) == query


def test_closing_tag_in_a_question_leaves_prepended_placeholders_bare_as_the_original() -> None:
    assert wrap_images("What does </img> mean?", num_images=1) == "<image>\nWhat does </img> mean?"


@pytest.mark.parametrize(
    ("query", "num_images", "counts"),
    [
        ("<image> what?", 2, "got 1 for 2 images"),
        ("<image> or <image>?", 1, "got 2 for 1 images"),
        ("<image>?", 0, "got 1 for 0 images"),
    ],
    ids=["too-few", "too-many", "no-image"],
)
def test_placeholders_that_do_not_match_are_refused(
    query: str, num_images: int, counts: str
) -> None:
    with pytest.raises(InputError, match=counts):
        wrap_images(query, num_images=num_images)


@pytest.mark.parametrize("query", ["", "  \t\n", "\u2003"], ids=["empty", "ascii", "em-space"])
@pytest.mark.parametrize("num_images", [0, 1])
def test_blank_question_is_refused(query: str, num_images: int) -> None:
    with pytest.raises(InputError, match="type a question"):
        wrap_images(query, num_images=num_images)


def test_history_repeats_the_template_and_every_role_opens_with_bos(
    tokenizer: ChatTokenizer,
) -> None:
    prompt = build_prompt("And now?", [("Hi", "Hello."), ("<img><image></img>\nWho?", "A cat.")])
    assert prompt == (
        "<|startoftext|><|User|>\nHi\n<|startoftext|><|Assistant|>\nHello.\n"
        "<|startoftext|><|User|>\n<img><image></img>\nWho?\n<|startoftext|><|Assistant|>\nA cat.\n"
        "<|startoftext|><|User|>\nAnd now?\n<|startoftext|><|Assistant|>\n"
    )
    assert tokenize_prompt(prompt, tokenizer).count(1) == 6


def test_answer_with_a_placeholder_is_refused() -> None:
    with pytest.raises(InputError, match="turn 2"):
        build_prompt("And now?", [("Hi", "Hello."), ("Echo", "an <image> tag")])


@pytest.mark.parametrize("official", [True, False], ids=["official", "intended"])
def test_video_gives_the_gold_ids(official: bool, tokenizer: ChatTokenizer) -> None:
    name = f"two-frame-video-{'official' if official else 'intended'}"
    gold = next(vector for vector in GOLD if vector["name"] == name)
    text = wrap_video("What happens?", num_frames=2, official_compat=official)
    prompt = build_prompt(text)
    assert prompt == gold["prompt"]
    assert tokenize_prompt(prompt, tokenizer) == gold["ids"]


FRAME = "<img><image></img>"


@pytest.mark.parametrize(
    ("num_frames", "correct", "official"),
    [
        (0, "<vid></vid>Hi", "<vid</vid>Hi"),
        (1, f"<vid>{FRAME}</vid>Hi", "<vid><img><img><image></img></img</vid>Hi"),
        (2, f"<vid>{FRAME}<t>{FRAME}</vid>Hi", f"<vid>{FRAME}<t><img><image></img</vid>Hi"),
        (
            3,
            f"<vid>{FRAME}<t>{FRAME}<t>{FRAME}</vid>Hi",
            f"<vid>{FRAME}<t>{FRAME}<t><img><image></img</vid>Hi",
        ),
    ],
    ids=["none", "one", "two", "three"],
)
def test_clip_is_written_correctly_or_as_the_original_does(
    num_frames: int, correct: str, official: str
) -> None:
    assert wrap_video("Hi", num_frames=num_frames) == correct
    assert wrap_video("Hi", num_frames=num_frames, official_compat=True) == official


@pytest.mark.parametrize("num_frames", [2, 3, 128, 1000])
@pytest.mark.parametrize("official", [True, False], ids=["official", "correct"])
def test_video_takes_as_many_positions_as_the_specification_says(
    num_frames: int, official: bool, tokenizer: ChatTokenizer
) -> None:
    text = wrap_video("What happens?", num_frames=num_frames, official_compat=official)
    ids = tokenize_prompt(build_prompt(text), tokenizer)
    assert prompt_length(ids, NUM_IMAGE_TOKENS) == 151 * num_frames + 16 + 3


def test_one_official_frame_is_left_alone_if_the_question_has_a_closing_tag() -> None:
    wrapped = wrap_video("</img>?", num_frames=1, official_compat=True)
    assert wrapped == "<vid><img><image></img</vid></img>?"


@pytest.mark.parametrize("official", [True, False], ids=["official", "correct"])
def test_blank_question_about_a_video_is_refused(official: bool) -> None:
    with pytest.raises(InputError, match="type a question"):
        wrap_video(" ", num_frames=2, official_compat=official)


@pytest.mark.parametrize("official", [True, False], ids=["official", "correct"])
def test_tiles_of_one_image_read_as_in_the_original(official: bool) -> None:
    text = wrap_images("<image>\nWhat?", num_images=1)
    assert expand_tiles(text, [(2, 3)], official_compat=official) == (
        f"<img><image>\n{FRAME}{FRAME}{FRAME}\n{FRAME}{FRAME}{FRAME}</img>\nWhat?"
    )
    assert expand_tiles(text, [(1, 1)], official_compat=official) == (
        f"<img><image>\n{FRAME}</img>\nWhat?"
    )


def test_tiles_of_several_images_stay_with_their_image() -> None:
    text = wrap_images("<image> or <image>?", num_images=2)
    assert expand_tiles(text, [(1, 2), (2, 1)]) == (
        f"<img><image>\n{FRAME}{FRAME}</img> or <img><image>\n{FRAME}\n{FRAME}</img>?"
    )


def test_official_tiles_of_several_images_nest_in_the_first() -> None:
    text = wrap_images("<image> or <image>?", num_images=2)
    assert expand_tiles(text, [(1, 2), (2, 1)], official_compat=True) == (
        f"<img><image>\n{FRAME}\n{FRAME}\n{FRAME}{FRAME}</img> or {FRAME}?"
    )


@pytest.mark.parametrize("official", [True, False], ids=["official", "correct"])
def test_tiles_have_a_placeholder_each(official: bool) -> None:
    grids = [(1, 1), (4, 3), (2, 5)]
    text = wrap_images("What?", num_images=3)
    expanded = expand_tiles(text, grids, official_compat=official)
    assert expanded.count("<image>") == 3 + 1 + 12 + 10
