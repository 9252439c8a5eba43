"""An interrupt or a failure at any line of any call leaves a session that is right: scores and counts are as before.

The decoder is cheap arithmetic on the true state object, which depends on every position and its order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import InputError, LongLLaVAError
from longllava_trt.runtime.backends.base import BackendLimits
from longllava_trt.runtime.backends.ort.backend import OrtBackend
from longllava_trt.runtime.backends.ort.decoder import DecoderState
from longllava_trt.runtime.inputs.encoder import EncodedImage, ImageEncoder
from longllava_trt.runtime.model import LongLLaVA, RunOptions
from longllava_trt.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2] / "runtime"
STATEFUL = {
    str(ROOT / name)
    for name in (
        "session.py",
        "sequence.py",
        "draft.py",
        "content.py",
        "prefill.py",
        "decode.py",
        "backends/ort/decoder.py",
    )
}
STATEFUL |= {
    name.replace(str(ROOT), str(ROOT.parent / "longllava_trt/runtime")) for name in STATEFUL
}
ANSWER = (5, 300, 17)
EVERY = 4


class SmallDecoder:
    """Decodes by arithmetic that depends on every position and on their order.

    Args:
        model: Whose contract it has.
        fails_after: Positions beyond which it fails, half of a chunk written.
    """

    def __init__(self, model: LongLLaVA, fails_after: int | None = None) -> None:
        self.vocab_size = model.runner.vocab_size
        self.fails_after = fails_after
        self.error: type[Exception] = LongLLaVAError

    def new_state(self, *, capacity: int) -> DecoderState:
        raise NotImplementedError

    def step(self, inputs_embeds: NDArray[np.float32], state: DecoderState) -> NDArray[np.float32]:
        rows = inputs_embeds[0].astype(np.float64).sum(axis=1)
        count, past = len(rows), state.past_len
        state.make_room(count)
        fading = 0.97 ** np.arange(count)[::-1]
        seen = 0.0
        for name, buffer in state.current.items():
            if name.endswith((".key", ".value")):
                buffer.array[0, :, past : past + count] = rows[:, None]
                places = np.arange(1, past + count + 1)
                seen += float(np.sin(places) @ buffer.array[0, 0, : past + count, 0])
            else:
                carried = 0.97**count * buffer.array
                state.spare[name].array[...] = carried + fading @ rows
                seen += float(state.spare[name].array.sum())
        if self.fails_after is not None and past + count > self.fails_after:
            raise self.error("decoder: out of order")
        state.advance(count)
        logits: NDArray[np.float32] = np.asarray(
            np.cos(seen + np.arange(self.vocab_size)), np.float32
        )
        return logits


def encode(_: ImageEncoder, groups: Any, **__: Any) -> Iterator[EncodedImage]:
    """Yield embeddings that tell one picture from another."""
    for group in groups:
        for image in group:
            drawn = np.random.default_rng(int(Path(str(image.source)).stem))
            yield EncodedImage(drawn.standard_normal((144, 64)).astype(np.float32))


@pytest.fixture
def model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> LongLLaVA:
    monkeypatch.setattr(ImageEncoder, "encode", encode)
    return small_model(tiny_bundle)


def small_model(bundle: Path, **options: Any) -> LongLLaVA:
    made = LongLLaVA.from_bundle(bundle, RunOptions(num_threads=1, chunk_size=200, **options))
    made.runner.decoder = SmallDecoder(made)
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(14)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    return paths


def shown(model: LongLLaVA, pictures: Sequence[Path]) -> Session:
    session = model.session(checkpoint_every=EVERY)
    session.ingest(pictures)
    return session


def scores(session: Session) -> NDArray[np.float32]:
    return session.score("What is this?", ANSWER)


class Interrupter:
    """Raises KeyboardInterrupt at one line event of the modules that touch state."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.lines: list[tuple[str, int]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in STATEFUL:
            return None
        if event == "line":
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) == self.at:
                raise KeyboardInterrupt
        return self

    def run(self, call: Callable[[], object]) -> None:
        """Run a call, broken off or not."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def moments(call: Callable[[], object]) -> list[int]:
    """Return the first and the last event of each line that a call runs."""
    watch = Interrupter()
    watch.run(call)
    first: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    for number, line in enumerate(watch.lines, start=1):
        first.setdefault(line, number)
        last[line] = number
    assert len(first) > 60, "the state's own lines are not among them: the trace is broken"
    return sorted({*first.values(), *last.values()})


@pytest.mark.slow
@pytest.mark.parametrize("remember", [False, True])
def test_an_interrupt_anywhere_in_a_question_changes_nothing(
    model: LongLLaVA, pictures: list[Path], remember: bool
) -> None:
    def ask(session: Session) -> object:
        return session.ask("And <image>?", pictures[6:7], max_new_tokens=2, remember=remember)

    untouched = shown(model, pictures[:6])
    before, positions = scores(untouched), untouched.num_positions
    asked = untouched.fork()
    ask(asked)
    after = scores(asked)
    for at in moments(lambda: ask(untouched.fork())):
        session = untouched.fork()
        Interrupter(at).run(partial(ask, session))
        if session.turns:
            # the answer was remembered already when the call was broken off
            np.testing.assert_array_equal(scores(session), after)
            continue
        assert (session.num_images, session.num_positions) == (6, positions)
        np.testing.assert_array_equal(scores(session), before)


@pytest.mark.slow
def test_an_interrupt_anywhere_in_ingest_leaves_whole_images(
    model: LongLLaVA, pictures: list[Path]
) -> None:
    expected = {n: scores(shown(model, pictures[:n])) for n in (3, 4, 8, 10)}

    def ingest(session: Session) -> object:
        return session.ingest(pictures[3:10])

    start = shown(model, pictures[:3])
    whole = start.fork()
    ingest(whole)
    expected[10] = scores(whole)
    seen = set()
    for at in moments(lambda: ingest(start.fork())):
        session = start.fork()
        Interrupter(at).run(partial(ingest, session))
        seen.add(session.num_images)
        np.testing.assert_allclose(scores(session), expected[session.num_images], atol=1e-5)
        session.ingest(pictures[session.num_images : 10])
        np.testing.assert_allclose(scores(session), expected[10], atol=1e-5)
    assert seen == {3, 4, 8, 10}


@pytest.mark.slow
def test_an_interrupt_anywhere_in_rewind_leaves_one_or_the_other(
    model: LongLLaVA, pictures: list[Path]
) -> None:
    start = shown(model, pictures[:11])
    expected = {11: scores(start), 6: scores(shown(model, pictures[:6]))}
    for at in moments(lambda: start.fork().rewind(6)):
        session = start.fork()
        Interrupter(at).run(partial(session.rewind, 6))
        np.testing.assert_allclose(scores(session), expected[session.num_images], atol=1e-5)


@pytest.mark.parametrize("error", [InputError, LongLLaVAError, RuntimeError])
def test_a_decoder_that_fails_leaves_no_image_that_was_not_fed(
    model: LongLLaVA, pictures: list[Path], error: type[Exception]
) -> None:
    decoder = model.runner.decoder
    assert isinstance(decoder, SmallDecoder)
    session = model.session(checkpoint_every=100)
    decoder.fails_after, decoder.error = 1000, error
    with pytest.raises(error, match="out of order"):
        session.ingest(pictures[:12])
    decoder.fails_after = None
    assert (session.num_images, session.num_positions) == (0, 0)
    np.testing.assert_array_equal(scores(session), scores(model.session()))
    session.ingest(pictures[:12])
    np.testing.assert_array_equal(scores(session), scores(shown_by(model, 100, pictures[:12])))


def shown_by(model: LongLLaVA, every: int, pictures: Sequence[Path]) -> Session:
    session = model.session(checkpoint_every=every)
    session.ingest(pictures)
    return session


def test_a_decoder_that_fails_in_rewind_leaves_the_checkpoint(
    model: LongLLaVA, pictures: list[Path]
) -> None:
    decoder = model.runner.decoder
    assert isinstance(decoder, SmallDecoder)
    session = shown(model, pictures[:11])
    decoder.fails_after = 700
    with pytest.raises(LongLLaVAError, match="out of order"):
        session.rewind(6)
    decoder.fails_after = None
    assert session.num_images == 4
    np.testing.assert_array_equal(scores(session), scores(shown(model, pictures[:4])))


class SmallCache(OrtBackend):
    """ONNX Runtime with the limits that engines have."""

    limits = BackendLimits(capacity=1000, longest_chunk=64, largest_vision_batch=2)


def test_what_exceeds_a_backends_cache_is_refused_before_any_image_is_decoded(
    tiny_bundle: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("an image was decoded")

    plain = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))
    backend = SmallCache(tiny_bundle, plain.manifest, kernels="fast", num_threads=1)
    model = LongLLaVA(tiny_bundle, plain.manifest, RunOptions(num_threads=1), backend=backend)
    session = model.session()
    with monkeypatch.context() as patch:
        patch.setattr(ImageEncoder, "encode", refuse)
        with pytest.raises(
            InputError, match=r"the cache has 1000; .*6 of the 12 images fit.*build"
        ):
            session.ingest(pictures[:12])
    assert (session.num_images, session.num_positions) == (0, 0)
    session.ingest(pictures[:6])
    assert session.num_images == 6
    assert session.ask("What?", max_new_tokens=2).num_images == 6


def test_chunks_and_batches_are_adapted_to_the_backend_quietly(
    tiny_bundle: Path, pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    plain = LongLLaVA.from_bundle(tiny_bundle, RunOptions(num_threads=1))
    backend = SmallCache(tiny_bundle, plain.manifest, kernels="fast", num_threads=1)
    model = LongLLaVA(tiny_bundle, plain.manifest, RunOptions(num_threads=1), backend=backend)
    with caplog.at_level("INFO"):
        assert model.runner.chunker.size_at(0) == 64
        answer = model.generate("What?", pictures[:3], max_new_tokens=3)
    assert answer.token_ids == plain.generate("What?", pictures[:3], max_new_tokens=3).token_ids
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "chunk_size: 512 is more than the backend takes, 64 is used" in caplog.text
    assert "vision_batch: 4 is more than the backend takes, 2 is used" in caplog.text
