"""Questions in, answers out; the answer depends on what is shown and not on how it is fed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.core.logs import ProgressEvent
from longllava_trt.runtime.inputs.message import MediaOptions
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.timings import STAGES


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (31 + seed, 47, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> LongLLaVA:
    return LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))


PICTURES = [picture(i) for i in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 1},
        {"chunk_size": 37, "vision_batch": 1},
        {"chunk_size": 4096, "vision_batch": 2},
        {"kernels": "onnx"},
    ],
    ids=str,
)
def test_answer_does_not_depend_on_how_it_is_computed(
    model: LongLLaVA, tiny_bundle: Path, options: dict[str, object]
) -> None:
    expected = model.generate("What is this?", PICTURES, max_new_tokens=12)
    other = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1, **options))  # type: ignore[arg-type]
    assert (
        other.generate("What is this?", PICTURES, max_new_tokens=12).token_ids == expected.token_ids
    )


def test_answer_depends_on_images_their_order_and_the_question(model: LongLLaVA) -> None:
    def ask(query: str, images: list[Image.Image]) -> tuple[int, ...]:
        return model.generate(query, images, max_new_tokens=12).token_ids

    answers = {
        ask("What is this?", PICTURES),
        ask("What is this?", PICTURES[::-1]),
        ask("What is this?", PICTURES[:1]),
        ask("What is that?", PICTURES),
        ask("What is this?", []),
    }
    assert len(answers) == 5


def test_placeholders_put_images_where_they_stand(model: LongLLaVA) -> None:
    before = model.generate("<image>\nWhat?", PICTURES[:1], max_new_tokens=12)
    implied = model.generate("What?", PICTURES[:1], max_new_tokens=12)
    after = model.generate("What? <image>", PICTURES[:1], max_new_tokens=12)
    assert before.token_ids == implied.token_ids != after.token_ids


def test_streamed_text_is_the_answer(model: LongLLaVA) -> None:
    pieces: list[str] = []
    answer = model.generate("Hello", max_new_tokens=20, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.text == model.chat("Hello", max_new_tokens=20)
    assert len(pieces) > 5
    assert len(answer.token_ids) == 20
    assert answer.decode_tokens_per_s


def test_stop_text_is_cut_and_never_streamed(model: LongLLaVA) -> None:
    whole = model.generate("Hello", max_new_tokens=20)
    assert whole.finish_reason == "length"
    stop = whole.text[5:8]
    pieces: list[str] = []
    answer = model.generate(
        "Hello",
        sampling=SamplingParams(stop=[stop], max_new_tokens=20),
        on_text=pieces.append,
    )
    assert answer.finish_reason == "stop"
    assert "".join(pieces).strip() == answer.text == whole.text[: whole.text.index(stop)].strip()
    count = len(answer.token_ids)
    assert count < 20
    assert answer.token_ids == whole.token_ids[:count]


def test_drawn_answers_repeat_with_their_seed(model: LongLLaVA) -> None:
    def ask(seed: int) -> tuple[int, ...]:
        sampling = SamplingParams(temperature=1.0, top_k=50, seed=seed, max_new_tokens=12)
        return model.generate("Hello", sampling=sampling).token_ids

    assert ask(1) == ask(1) != ask(2)


def test_default_sampling_is_greedy(model: LongLLaVA) -> None:
    tokens = model.generate("Hello", max_new_tokens=12).token_ids
    explicit = SamplingParams(temperature=0.0, seed=3, max_new_tokens=12)
    assert model.generate("Hello", sampling=explicit).token_ids == tokens
    nearly = SamplingParams(temperature=1.0, top_k=1, max_new_tokens=12)
    assert model.generate("Hello", sampling=nearly).token_ids == tokens


def test_tiles_are_more_images_and_another_answer(model: LongLLaVA) -> None:
    wide = picture(1).resize((500, 300))
    once = model.generate("What?", [wide], max_new_tokens=12)
    tiled = model.generate(
        "What?", [wide], media=MediaOptions(high_resolution=True), max_new_tokens=12
    )
    assert (once.num_images, tiled.num_images) == (1, 3)
    assert tiled.prompt_tokens > once.prompt_tokens + 2 * 144
    assert tiled.token_ids != once.token_ids


def test_prompt_tokens_count_144_for_an_image(model: LongLLaVA) -> None:
    def count(images: list[Image.Image]) -> int:
        return model.generate("Hi", images, max_new_tokens=1).prompt_tokens

    one, two = count(PICTURES[:1]), count(PICTURES[:2])
    markers = len(model.runner.tokenizer.encode("<img>")) + len(
        model.runner.tokenizer.encode("</img>\n")
    )
    # the texts on both sides of an image are tokenised apart, so only the joint may differ
    assert abs((two - one) - (144 + markers)) <= 1


def test_progress_reaches_the_prompts_length(tiny_bundle: Path) -> None:
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(chunk_size=50))
    events: list[ProgressEvent] = []
    answer = model.generate("Hi", PICTURES[:1], max_new_tokens=1, progress=events.append)
    prefill = [e for e in events if e.task == "prefill"]
    # the chunk after the third ends with the image
    assert [e.done for e in prefill[:4]] == [0, 50, 100, 150]
    assert prefill[-1].done == prefill[-1].total == answer.prompt_tokens
    for task in ("decode images", "encode images"):
        assert [(e.done, e.total) for e in events if e.task == task] == [(0, 1), (1, 1)]


def test_timings_name_every_stage(model: LongLLaVA) -> None:
    shown = model.generate("Hi", PICTURES[:1], max_new_tokens=2).timings
    assert tuple(shown) == STAGES
    assert all(seconds > 0 for seconds in shown.values())
    unseen = model.generate("Hi", max_new_tokens=2).timings
    assert [stage for stage, seconds in unseen.items() if not seconds] == [
        "decode_image",
        "vision",
        "projector",
    ]


def test_a_broken_image_is_skipped_as_if_it_had_not_been_shown(
    model: LongLLaVA, tmp_path: Path
) -> None:
    (tmp_path / "b.jpg").write_bytes(b"")
    skip = MediaOptions(on_broken="skip")
    images: list[Path | Image.Image] = [PICTURES[0], tmp_path / "b.jpg", PICTURES[1]]
    answer = model.generate("Hi", images, media=skip, max_new_tokens=4)
    assert answer.token_ids == model.generate("Hi", PICTURES[:2], max_new_tokens=4).token_ids
    assert answer.num_images == 2
    assert len(answer.skipped) == 1
    assert answer.skipped[0].startswith(f"image 2 ({tmp_path / 'b.jpg'}): the file is empty")


@pytest.mark.parametrize(
    ("query", "images", "tokens", "message"),
    [
        (" \n", 0, 4, "the text is empty"),
        ("<image> <image>", 1, 4, "got 2 for 1 images"),
        ("<image>", 2, 4, "got 1 for 2 images"),
        ("Hi", 0, 0, "max_new_tokens must be at least 1, got 0"),
    ],
    ids=["blank", "more-placeholders", "fewer-placeholders", "no-tokens"],
)
def test_bad_requests_are_explained(
    model: LongLLaVA, query: str, images: int, tokens: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(query, PICTURES[:images], max_new_tokens=tokens)


def test_a_prompt_longer_than_the_cache_is_refused_before_any_work(tiny_bundle: Path) -> None:
    model = LongLLaVA.from_bundle(tiny_bundle, RunOptions(max_context=100))
    with pytest.raises(
        InputError, match=r"the cache has 100; show fewer images \(0 of the 1 images fit\)"
    ):
        model.generate("Hi", PICTURES[:1])
    assert "decoder" not in vars(model.runner)


@pytest.mark.parametrize("file", ["decoder.onnx", "tokenizer.json", "weights"])
def test_a_bundle_that_was_changed_is_refused(tiny_bundle: Path, tmp_path: Path, file: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    path = next((copy / file).iterdir()) if file == "weights" else copy / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=rf"{path.name}: must have sha256"):
        LongLLaVA.from_bundle(copy)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        RunOptions(chunk_size=0)
