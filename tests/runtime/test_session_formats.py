"""Sessions in formats whose roles begin with no special token: always the ids of the whole conversation as one text.

The tiny LongLLaVA runs with prompts and tokenizers of the LLaVA series; what it answers means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.llava.chat import read_chat
from longllava_trt.runtime.inputs.message import MessageFormat
from longllava_trt.runtime.inputs.pixels import preprocess
from longllava_trt.runtime.inputs.processor import load_processor_config
from longllava_trt.runtime.inputs.sources import load_image
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.session import Session
from longllava_trt.runtime.text.quoting import quote
from longllava_trt.runtime.text.tokenizer import ChatTokenizer
from tests.llava_series import exported
from tests.models.llava.gold import DATA
from tests.runtime.text.test_chat_ids import IMAGE, hugging_face, prompt_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUESTIONS = ("What is</s> this?", "  And, now: two\nlines 🙂 ", "Same?")


@pytest.fixture(
    scope="module", params=["v1", "v0-tags", "mistral", "chatml", "hf-first", "hf-legacy"]
)
def model(
    request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> LongLLaVA:
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    kind = request.param
    if kind.startswith("hf"):
        chat = hugging_face(folder, "llama", legacy=kind == "hf-legacy").chat
    else:
        exported(DATA / ("llava-1" if kind == "v0-tags" else "llava-1.6"), folder)
        chat = read_chat(folder, kind.split("-")[0])
    made = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1, chunk_size=100))
    made.runner.chat, made.runner.tokenizer = chat, ChatTokenizer(folder, chat)
    made.runner.form = MessageFormat(chat, made.runner.form.cutter)
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (13 + i, 21, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def whole(model: LongLLaVA, prompt: str, images: Sequence[Path]) -> tuple[NDArray[np.float32], int]:
    """Return the logits after a prompt that is one text, and its positions; no session is in it."""
    config, runner = load_processor_config(model.bundle), model.runner
    left = iter(images)

    def rows(token: int) -> NDArray[np.float32]:
        if token != IMAGE:
            return np.asarray(runner.embed_tokens([token])[0], np.float32)
        pixels = preprocess(load_image(next(left), position=1), config)[None]
        features = runner.vision.run({"pixel_values": pixels})
        return np.asarray(runner.projector.run(features)["image_embeds"][0], np.float32)

    embeds = np.concatenate([rows(token) for token in prompt_ids(prompt, runner.tokenizer)])[None]
    state = runner.decoder.new_state(capacity=embeds.shape[1])
    logits: NDArray[np.float32] = runner.decoder.step(embeds, state)
    return logits, embeds.shape[1]


def image_of(chat: ChatFormat) -> str:
    return chat.image_open + chat.image_placeholder + chat.image_close + chat.after_image


def assert_equal(model: LongLLaVA, session: Session, prompt: str, images: Sequence[Path]) -> None:
    """Assert that a session's next question has the logits of a whole prompt, of which it is the end."""
    want, length = whole(model, prompt, images)
    got = session.score(QUESTIONS[2], [5])[0]
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= 1e-5
    assert session.ask(QUESTIONS[2], max_new_tokens=1).prompt_tokens == length


def test_remembered_turns_are_one_text(
    model: LongLLaVA, pictures: list[Path], tmp_path: Path
) -> None:
    chat = model.runner.chat
    image = image_of(chat)
    session = model.session(checkpoint_every=1)
    session.ingest(pictures[0])
    first = session.ask(QUESTIONS[0], max_new_tokens=5, remember=True).text
    second = session.ask(QUESTIONS[1], pictures[1], max_new_tokens=5, remember=True).text
    turns = [
        (image + quote(QUESTIONS[0]), quote(first)),
        (image + quote(QUESTIONS[1]), quote(second)),
    ]
    prompt = chat.prompt(quote(QUESTIONS[2]), turns=turns)
    assert_equal(model, session, prompt, pictures[:2])
    assert session.turns[1].question == image + QUESTIONS[1]
    # the same in a copy, and in one that was saved
    assert_equal(model, session.fork(), prompt, pictures[:2])
    session.save(tmp_path / "saved")
    loaded = model.load_session(tmp_path / "saved")
    assert_equal(model, loaded, prompt, pictures[:2])
    # more images after it, and the prompt as a person reads it
    loaded.ingest(pictures[2])
    asked = image + quote(QUESTIONS[2])
    assert_equal(model, loaded, chat.prompt(asked, turns=turns), pictures)
    written = loaded.written_prompt(QUESTIONS[2])
    assert written.text == chat.prompt(
        image + QUESTIONS[2],
        turns=[(image + QUESTIONS[0], first), (image + QUESTIONS[1], second)],
    )
    ids = prompt_ids(chat.prompt(asked, turns=turns), model.runner.tokenizer)
    assert (written.num_ids, written.num_images) == (len(ids) - 3, 3)
    # back to the first image, and to nothing
    loaded.rewind(1)
    assert_equal(model, loaded, chat.prompt(image + quote(QUESTIONS[2])), pictures[:1])
    loaded.rewind(0)
    assert_equal(model, loaded, chat.prompt(quote(QUESTIONS[2])), [])
    assert_equal(model, session, prompt, pictures[:2])


def test_a_session_goes_on_in_its_own_format_alone(model: LongLLaVA, tmp_path: Path) -> None:
    model.session().save(tmp_path / "saved")
    own = model.runner.chat
    model.runner.chat = replace(own, name="other")
    try:
        with pytest.raises(InputError) as caught:
            model.load_session(tmp_path / "saved")
    finally:
        model.runner.chat = own
    assert str(caught.value) == (
        f"{tmp_path}/saved: was made with --prompt-format {own.name}, this model runs with other; name that one, or show the "
        "images again"
    )


def test_turns_without_images_are_one_text(model: LongLLaVA) -> None:
    chat = model.runner.chat
    session = model.session()
    turns: list[tuple[str, str]] = []
    for question in QUESTIONS:
        assert_equal(model, session, chat.prompt(quote(QUESTIONS[2]), turns=turns), [])
        answer = session.ask(question, max_new_tokens=4, remember=True).text
        turns.append((quote(question), quote(answer)))
    assert_equal(model, session, chat.prompt(quote(QUESTIONS[2]), turns=turns), [])


def test_placeholders_are_the_places_of_images(model: LongLLaVA, pictures: list[Path]) -> None:
    chat = model.runner.chat
    bare = chat.image_open + chat.image_placeholder + chat.image_close
    session = model.session()
    got = session.score("<image> was </s>, <image>\nis. ", [5], images=pictures[:2])[0]
    question = bare + quote(" was </s>, ") + bare + "\n" + quote("is. ")
    want, _ = whole(model, chat.prompt(question), pictures[:2])
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= 1e-5


def test_a_remembered_question_feeds_no_image_again(
    model: LongLLaVA, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session()
    session.ingest(pictures)
    before = session.num_positions
    session.ask(QUESTIONS[0], max_new_tokens=2, remember=True)
    assert session.num_positions >= before
    fed: list[int] = []
    embed = model.runner.embed_tokens

    def counted(ids: Sequence[int]) -> NDArray[np.float32]:
        fed.append(len(ids))
        return embed(ids)

    monkeypatch.setattr(model.runner, "embed_tokens", counted)
    whole_turn = len(model.runner.tokenizer.encode(QUESTIONS[0], after="image"))
    session.ask(QUESTIONS[2], max_new_tokens=1)
    assert sum(fed) < whole_turn + 150


def test_what_cannot_fit_counts_the_same_ids(model: LongLLaVA, pictures: list[Path]) -> None:
    session = model.session()
    session.ingest(pictures[0])
    prompt = model.runner.chat.prompt(image_of(model.runner.chat) + quote(QUESTIONS[0]))
    length = (
        len(prompt_ids(prompt, model.runner.tokenizer)) - 1 + model.runner.cutter.patches.num_rows
    )
    with pytest.raises(InputError, match=f"the prompt takes {length} positions"):
        session.ask(QUESTIONS[0], max_new_tokens=10**9)
