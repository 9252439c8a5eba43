"""Parts against the original's strings: the ids of a message built from parts are those of the written prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.models.image_layout import PatchGrid
from longllava_trt.models.image_spec import ImageSpec
from longllava_trt.models.llava_jamba.chat import CHAT
from longllava_trt.models.llava_jamba.image_policy import IMAGE_POLICY
from longllava_trt.reference.prompt import (
    IMAGE_TOKEN_INDEX,
    build_prompt,
    expand_tiles,
    tokenize_prompt,
    wrap_images,
    wrap_video,
)
from longllava_trt.runtime.inputs.images import ViewCutter
from longllava_trt.runtime.inputs.message import (
    MediaOptions,
    Message,
    MessageFormat,
    Text,
    build_message,
)
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

FORM = MessageFormat(
    CHAT,
    ViewCutter(ImageSpec(aspect_ratio="pad"), PatchGrid(image_size=336, side=12), IMAGE_POLICY),
)
TOKENIZER = ChatTokenizer(Path(__file__).parents[1] / "text" / "data" / "reduced-tokenizer", CHAT)
STILL = Image.new("RGB", (4, 4))

PIECES = st.sampled_from(["<image>", "<img>", "</img>", "\n", "a ", "Who? ", "<", ">", "<t>"])


def ids_of(message: Message) -> list[int]:
    """Return ids as a sequence feeds them: text between images is tokenised as one piece."""
    ids: list[int] = []
    text = CHAT.user_role
    for part in message.parts:
        if isinstance(part, Text):
            text += part.text
            continue
        for image in part.images:
            ids += [*TOKENIZER.encode(text + image.opening), IMAGE_TOKEN_INDEX]
            text = ""
        text = part.closing
    return ids + TOKENIZER.encode(text + CHAT.separator + CHAT.assistant_role)


def built(query: str, images: Any, **options: Any) -> Message:
    return build_message(query, images=images, options=MediaOptions(**options), form=FORM)


@given(pieces=st.lists(PIECES, min_size=1, max_size=9), num_images=st.integers(0, 3))
def test_any_query_gives_the_originals_ids(pieces: list[str], num_images: int) -> None:
    query = "".join(pieces)
    try:
        text = wrap_images(query, num_images=num_images)
    except InputError:
        with pytest.raises(InputError):
            built(query, [STILL] * num_images)
        return
    message = built(query, [STILL] * num_images)
    assert message.written("<image>") == text
    assert message.num_images == num_images
    assert ids_of(message) == tokenize_prompt(build_prompt(text), TOKENIZER)


@given(
    pieces=st.lists(PIECES, min_size=1, max_size=6),
    sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=3),
    official=st.booleans(),
)
def test_tiles_give_the_originals_text(
    pieces: list[str], sizes: list[tuple[int, int]], official: bool
) -> None:
    query = "".join(pieces).replace("<image>", "") + "Hi" + "<image>" * len(sizes)
    stills = [Image.new("1", size) for size in sizes]
    grids = [IMAGE_POLICY.grid(size, image_size=336) for size in sizes]
    text = wrap_images(query, num_images=len(sizes))
    message = built(query, stills, high_resolution=True, official_compat=official)
    expected = expand_tiles(text, grids, official_compat=official)
    assert message.written("<image>") == expected
    assert ids_of(message) == tokenize_prompt(build_prompt(expected), TOKENIZER)


@given(
    frames=st.integers(1, 5),
    pieces=st.lists(PIECES, min_size=1, max_size=6),
)
def test_the_originals_clip_is_written_as_the_original_writes_it(
    frames: int, pieces: list[str]
) -> None:
    query = "".join(pieces).replace("<image>", "") + "Hi"
    original = CHAT.original
    assert original is not None
    written = "<image>".join(original.clip(query, num_frames=frames))
    assert written == wrap_video(query, num_frames=frames, official_compat=True)


def test_a_family_without_an_original_refuses_official_compat() -> None:
    from dataclasses import replace

    plain = MessageFormat(replace(CHAT, original=None), FORM.cutter)
    with pytest.raises(InputError, match="official_compat means nothing for this model"):
        build_message("Hi", options=MediaOptions(official_compat=True), form=plain)
