"""Promises of a session: the same answers as one prompt, without feeding anything twice, from any point of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.reference.prompt import (
    ASSISTANT_ROLE,
    IMAGE_TOKEN_INDEX,
    build_prompt,
    tokenize_prompt,
    wrap_images,
)
from longllava_trt.runtime.backends.ort.decoder import Decoder, DecoderState
from longllava_trt.runtime.inputs.encoder import EncodedImage, ImageEncoder
from longllava_trt.runtime.inputs.message import MediaOptions
from longllava_trt.runtime.inputs.pixels import preprocess
from longllava_trt.runtime.inputs.processor import load_processor_config
from longllava_trt.runtime.inputs.sources import load_image
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANSWER = (5, 300, 17, 411)
"""Any tokens: scored, so that all logits are compared and not only the best."""

QUERY = "<image> was before, and <image> is after. What has changed?"


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1, chunk_size=100))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty small pictures of odd sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (13 + i, 21, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def shown(model: LongLLaVA, pictures: list[Path]) -> Session:
    """All pictures, a checkpoint after each fourth; tests fork it."""
    session = model.session(checkpoint_every=4)
    assert session.ingest(pictures).num_images == 20
    return session


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all that the decoder is fed from now on."""
    lengths: list[int] = []
    step = Decoder.step

    def counted(
        self: Decoder, inputs_embeds: NDArray[np.float32], state: DecoderState
    ) -> NDArray[np.float32]:
        lengths.append(inputs_embeds.shape[1])
        return step(self, inputs_embeds, state)

    monkeypatch.setattr(Decoder, "step", counted)
    return lengths


def scores(session: Session, query: str = "What is this?") -> NDArray[np.float32]:
    return session.score(query, ANSWER)


def relative_rms(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def test_ingest_and_ask_equal_one_prompt_to_the_bit(model: LongLLaVA, pictures: list[Path]) -> None:
    session = model.session()
    session.ingest(pictures)
    whole = model.session().score("What is this?", ANSWER, images=pictures)
    np.testing.assert_array_equal(scores(session), whole)
    asked = session.ask("What is this?", max_new_tokens=6)
    generated = model.generate("What is this?", pictures, max_new_tokens=6)
    assert asked.token_ids == generated.token_ids
    assert asked.prompt_tokens == generated.prompt_tokens
    assert not np.array_equal(scores(session, "What is that?"), whole)


def embeddings(model: LongLLaVA, prompt: str, images: Sequence[Path]) -> NDArray[np.float32]:
    """Put a prompt together id by id and image by image, without any session."""
    config = load_processor_config(model.bundle)

    def encoded(path: Path) -> NDArray[np.float32]:
        pixels = preprocess(load_image(path, position=1), config)[None]
        features = model.runner.vision.run({"pixel_values": pixels})
        return np.asarray(model.runner.projector.run(features)["image_embeds"][0], np.float32)

    left = iter(images)
    rows = [
        encoded(next(left)) if i == IMAGE_TOKEN_INDEX else model.runner.embed_tokens([i])[0]
        for i in tokenize_prompt(prompt, model.runner.tokenizer)
    ]
    return np.concatenate(rows)[None]


def feed(model: LongLLaVA, embeds: NDArray[np.float32], cuts: Sequence[int]) -> NDArray[np.float32]:
    state = model.runner.decoder.new_state(capacity=embeds.shape[1])
    pieces = np.split(embeds, sorted(set(cuts)), axis=1)
    return [model.runner.decoder.step(piece, state) for piece in pieces if piece.shape[1]][-1]


@pytest.fixture(scope="module")
def prompt(model: LongLLaVA, pictures: list[Path]) -> NDArray[np.float32]:
    text = wrap_images(QUERY, num_images=2)
    return embeddings(model, build_prompt(text), pictures[:2])


@settings(max_examples=20)
@given(data=st.data())
def test_any_cut_gives_the_whole(
    model: LongLLaVA, prompt: NDArray[np.float32], data: st.DataObject
) -> None:
    # cuts fall inside images, between markers and inside text alike
    cuts = data.draw(st.lists(st.integers(1, prompt.shape[1] - 1), max_size=6))
    assert relative_rms(feed(model, prompt, cuts), feed(model, prompt, [])) <= 1e-5


def test_step_by_step_and_as_a_session_give_the_whole(
    model: LongLLaVA, prompt: NDArray[np.float32], pictures: list[Path]
) -> None:
    whole = feed(model, prompt, [])
    assert relative_rms(feed(model, prompt, range(1, prompt.shape[1])), whole) <= 1e-5
    fed = model.session().score(QUERY, ANSWER, images=pictures[:2])[0]
    assert relative_rms(fed, whole) <= 1e-5
    swapped = model.session().score(QUERY, ANSWER, images=pictures[1::-1])[0]
    assert relative_rms(swapped, whole) > 1e-3


def test_later_questions_do_not_feed_the_images_again(
    shown: Session, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageEncoder, "encode", lambda *_, **__: iter(()))
    positions = shown.num_positions
    answers = []
    for question in ("What?", "Who is it?", "What?", "Where was it?", "What?"):
        steps.clear()
        answers.append(shown.ask(question, max_new_tokens=3).token_ids)
        assert sum(steps) < 50
        assert shown.num_positions == positions > 20 * 144
    assert answers[0] == answers[2] == answers[4]


def test_a_question_may_show_images_of_its_own(shown: Session, pictures: list[Path]) -> None:
    before = scores(shown)
    answer = shown.ask("And <image>?", pictures[:1], max_new_tokens=2)
    assert answer.num_images == 21
    assert shown.num_images == 20
    np.testing.assert_array_equal(scores(shown), before)


def test_remembered_turns_are_the_true_history(model: LongLLaVA, pictures: list[Path]) -> None:
    session = model.session()
    session.ingest(pictures[:1])
    first = session.ask("What is it?", max_new_tokens=5, remember=True)
    second = session.ask("Or <image>?", pictures[1:2], max_new_tokens=5, remember=True)
    history = [
        (wrap_images("What is it?", num_images=1), first.text),
        (wrap_images("Or <image>?", num_images=1), second.text),
    ]
    prompt = build_prompt("And now?", history)
    assert written(session) + "And now?\n" + ASSISTANT_ROLE == prompt
    assert [turn.answer for turn in session.turns] == [first.text, second.text]
    whole = feed(model, embeddings(model, prompt, pictures[:2]), [])
    assert relative_rms(session.score("And now?", ANSWER)[0], whole) <= 1e-5
    forgotten = build_prompt("And now?", history[:1])
    other = feed(model, embeddings(model, forgotten, pictures[:1]), [])
    assert relative_rms(other, whole) > 1e-3
    session.rewind(1)
    assert session.turns == ()
    assert written(session).endswith("<image></img>\n")


def written(session: Session) -> str:
    """Return all text of a context, with placeholders."""
    content = session.sequence.content
    waiting = content.fed_text + content.pending
    return "<image>".join([*(image.before for image in content.images), waiting])


@pytest.mark.parametrize("to_image", [0, 1, 4, 7, 16, 19, 20])
def test_rewind_equals_showing_so_many_only(
    shown: Session, model: LongLLaVA, pictures: list[Path], to_image: int, steps: list[int]
) -> None:
    session = shown.fork()
    steps.clear()
    session.rewind(to_image)
    assert sum(steps) < 3 * 160 + 50
    fresh = model.session(checkpoint_every=4)
    fresh.ingest(pictures[:to_image])
    assert session.num_positions == fresh.num_positions
    np.testing.assert_array_equal(scores(session), scores(fresh))
    session.append(pictures[to_image : to_image + 3])
    fresh.append(pictures[to_image : to_image + 3])
    np.testing.assert_array_equal(scores(session), scores(fresh))


def test_rewind_needs_only_what_it_encodes_again(
    shown: Session, pictures: list[Path], tmp_path: Path
) -> None:
    session = shown.fork()
    copy = tmp_path / "copy.png"
    copy.write_bytes(pictures[0].read_bytes())
    session.rewind(8)
    session.ingest([copy, *pictures[:3]])
    before = scores(session)
    copy.unlink()
    with pytest.raises(InputError, match=r"rewind: image 1 \(.*copy.png\) is gone or has changed"):
        session.rewind(10)
    assert session.num_images == 12
    np.testing.assert_array_equal(scores(session), before)
    session.rewind(8)
    assert session.num_images == 8


@pytest.mark.parametrize("to_image", [-1, 21])
def test_rewind_to_nowhere_is_refused(shown: Session, to_image: int) -> None:
    with pytest.raises(InputError, match=rf"must be from 0 to 20, .* got {to_image}"):
        shown.rewind(to_image)


def test_forks_are_independent(shown: Session, pictures: list[Path]) -> None:
    before = scores(shown)
    fork = shown.fork()
    np.testing.assert_array_equal(scores(fork), before)
    fork.append(pictures[:2])
    fork.ask("What?", max_new_tokens=2, remember=True)
    assert not np.array_equal(scores(fork), before)
    np.testing.assert_array_equal(scores(shown), before)
    assert (shown.num_images, shown.turns) == (20, ())


def test_images_may_be_shown_in_any_portions(
    shown: Session, model: LongLLaVA, pictures: list[Path]
) -> None:
    session = model.session(checkpoint_every=4)
    session.ingest(pictures[:7])
    session.append(pictures[7:8])
    session.append(pictures[8:])
    assert session.num_positions == shown.num_positions
    assert relative_rms(scores(session), scores(shown)) <= 1e-5


@pytest.mark.parametrize("chunk_size", [1, 37, 4096])
def test_chunk_size_does_not_matter(
    shown: Session, tiny_bundle: Path, pictures: list[Path], chunk_size: int
) -> None:
    options = RunOptions(num_threads=1, chunk_size=chunk_size, vision_batch=3)
    session = LongLLaVA.from_bundle(tiny_bundle, options).session()
    session.ingest(pictures[:5])
    reference = shown.fork()
    reference.rewind(5)
    assert relative_rms(scores(session), scores(reference)) <= 1e-5


def test_a_broken_image_stops_where_it_stands(
    model: LongLLaVA, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    Image.effect_noise((90, 90), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:700])
    session = model.session(checkpoint_every=4)
    with pytest.raises(InputError, match=r"image 7 \(.*broken.jpg\): cannot be decoded"):
        session.ingest([*pictures[:6], broken, *pictures[6:]])
    assert session.num_images == 6
    fresh = model.session(checkpoint_every=4)
    fresh.ingest(pictures[:6])
    # the images before it were fed in other chunks
    assert relative_rms(scores(session), scores(fresh)) <= 1e-5


@pytest.mark.parametrize("high_resolution", [False, True], ids=["plain", "tiles"])
def test_broken_images_are_skipped_with_a_note(
    model: LongLLaVA, pictures: list[Path], tmp_path: Path, high_resolution: bool
) -> None:
    empty, missing = tmp_path / "empty.png", tmp_path / "missing.png"
    empty.write_bytes(b"")
    media = MediaOptions(on_broken="skip", high_resolution=high_resolution)
    session, fresh = model.session(media=media), model.session(media=media)
    shown = session.ingest([empty, pictures[0], missing, pictures[1]])
    assert [note.partition(":")[0] for note in shown.skipped] == [
        f"image 1 ({empty})",
        f"image 3 ({missing})",
    ]
    fresh.ingest(pictures[:2])
    assert session.num_images == fresh.num_images == (4 if high_resolution else 2)
    assert written(session) == written(fresh)
    assert relative_rms(scores(session), scores(fresh)) <= 1e-5


def write_odd_files(folder: Path) -> dict[str, Path]:
    """Write what cameras and browsers leave behind; the last two cannot be used."""
    noise = Image.effect_noise((40, 30), 60)
    paths = {name: folder / name for name in "a.gif b.jpg c.png d.png e.png f.jpg".split()}
    noise.save(paths["a.gif"], save_all=True, append_images=[noise.rotate(90)])
    noise.convert("CMYK").save(paths["b.jpg"])
    Image.fromarray(np.asarray(noise, np.uint16) * 256).save(paths["c.png"])
    noise.convert("P").save(paths["d.png"], transparency=3)
    Image.new("1", (40_000, 1)).save(paths["e.png"])
    noise.save(paths["f.jpg"])
    paths["f.jpg"].write_bytes(paths["f.jpg"].read_bytes()[:400])
    return paths


def test_odd_files_among_others_are_shown_or_skipped(
    model: LongLLaVA, pictures: list[Path], tmp_path: Path
) -> None:
    odd = write_odd_files(tmp_path)
    session = model.session(media=MediaOptions(on_broken="skip"))
    shown = session.ingest([pictures[0], *odd.values(), pictures[1]])
    assert shown.num_images == 6
    assert [note.partition(": ")[0] for note in shown.skipped] == [
        f"image 6 ({odd['e.png']})",
        f"image 7 ({odd['f.jpg']})",
    ]
    assert "40000x1 is too large" in shown.skipped[0]
    assert "cannot be decoded" in shown.skipped[1]


def test_rewind_closes_what_is_open(model: LongLLaVA, pictures: list[Path]) -> None:
    session = model.session(media=MediaOptions(high_resolution=True))
    session.ingest([Image.open(pictures[0]).resize((400, 300))])
    assert session.num_images == 3
    role, one, two = "<|startoftext|><|User|>\n", "<img><image>", "\n<img><image></img>"
    session.rewind(2)
    assert written(session) == f"{role}{one}{two}</img>\n"
    session.rewind(1)
    assert written(session) == f"{role}{one}</img>\n"


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder's call after N be broken off as Ctrl-C breaks it off: half done."""
    step, left = Decoder.step, [count]

    def interrupted(
        self: Decoder, inputs_embeds: NDArray[np.float32], state: DecoderState
    ) -> NDArray[np.float32]:
        left[0] -= 1
        if left[0] < 0:
            step(self, inputs_embeds[:, :1], state)
            raise KeyboardInterrupt
        return step(self, inputs_embeds, state)

    monkeypatch.setattr(Decoder, "step", interrupted)


def test_an_interrupt_leaves_the_last_checkpoint(
    model: LongLLaVA, pictures: list[Path], shown: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.session(checkpoint_every=4)
    with monkeypatch.context() as patch:
        interrupt_after(17, patch)
        with pytest.raises(KeyboardInterrupt):
            session.ingest(pictures)
    assert session.num_images == 8
    session.append(pictures[8:])
    np.testing.assert_array_equal(scores(session), scores(shown))


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_interrupted_question_changes_nothing(
    shown: Session, remember: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = shown.fork()
    before = scores(session)
    with monkeypatch.context() as patch:
        interrupt_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            session.ask("What?", max_new_tokens=9, remember=remember)
    assert (session.num_images, session.turns) == (20, ())
    np.testing.assert_array_equal(scores(session), before)


def test_what_cannot_fit_is_refused_before_any_work(
    tiny_bundle: Path, pictures: list[Path], steps: list[int]
) -> None:
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1, max_context=1000))
    session = model.session()
    with pytest.raises(InputError, match=r"ingest: .* \(6 of the 20 images fit\)"):
        session.ingest(pictures)
    assert "decoder" not in vars(model.runner)
    assert "vision" not in vars(model.runner)
    session.ingest(pictures[:6])
    with pytest.raises(InputError, match="generate: the prompt takes"):
        session.ask("What?", max_new_tokens=900)
    assert session.ask("What?", max_new_tokens=2).num_images == 6
    with pytest.raises(InputError, match=r"\(0 of the 1 images fit\)"):
        session.append(pictures[:1])


def test_a_thousand_images_are_shown_once(
    model: LongLLaVA, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []

    def count(
        _: Decoder, inputs_embeds: NDArray[np.float32], state: DecoderState
    ) -> NDArray[np.float32]:
        # attention over this number of positions takes minutes; the decoder is not tested here
        state.make_room(inputs_embeds.shape[1])
        state.advance(inputs_embeds.shape[1])
        fed.append(inputs_embeds.shape[1])
        return np.ones(512, np.float32)

    def encode(_: ImageEncoder, groups: Any, **__: Any) -> Iterator[EncodedImage]:
        embeds = np.zeros((model.runner.cutter.patches.num_rows, 64), np.float32)
        return (EncodedImage(embeds) for group in groups for _ in group)

    monkeypatch.setattr(Decoder, "step", count)
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    session = model.session()
    session.ingest(pictures * 50)
    assert session.num_images == 1000
    assert sum(fed) == session.num_positions > 144_000
    for _ in range(5):
        fed.clear()
        assert len(session.ask("What?", max_new_tokens=3).token_ids) == 3
        assert sum(fed) < 50
    fed.clear()
    session.rewind(511)
    assert session.num_images == 511
    assert 15 * 144 < sum(fed) < 15 * 160
