"""A context that is kept: show images once, ask any number of questions about them.

A question does not change the context unless it is to be remembered: its text, its answer and the images shown with it are
gone once it is answered. A remembered one becomes history, exactly as the chat protocol writes earlier turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import Progress
from longllava_trt.runtime.decode import generate_tokens
from longllava_trt.runtime.inputs.image_files import ImageSource
from longllava_trt.runtime.inputs.message import MediaOptions, Message, build_message
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.sequence import MultimodalSequence
from longllava_trt.runtime.text.chat import ASSISTANT_ROLE, SEPARATOR, USER_ROLE
from longllava_trt.runtime.text.detokenizer import GenerationOutput, IncrementalDetokenizer
from longllava_trt.runtime.timings import RequestMetrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ingested", "RememberedTurn", "Session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What was shown, and what it cost."""

    num_images: int
    """Images added; each tile and each frame of a video is one."""
    num_positions: int
    """Positions added."""
    skipped: tuple[str, ...]
    """Images that were left out, each with the reason."""
    seconds: float
    timings: dict[str, float]
    """Seconds by stage, as in `GenerationOutput`."""


class RememberedTurn(NamedTuple):
    """A question that is history, with its answer."""

    question: str
    """With a placeholder for each image that was shown with it."""
    answer: str
    num_images: int
    """In the context when it was answered."""


class _Prompted(NamedTuple):
    """A question that was fed."""

    logits: NDArray[np.float32]
    skipped: tuple[str, ...]


class Session:
    """A context and its history; made by `LongLLaVA.session`.

    After any error or interrupt the context is whole, and `num_images` says what is in it. One session serves one call at a
    time, and so do all sessions of one model together.

    Args:
        context: What the session holds; its own.
        media: How images and videos are shown.
        turns: What is remembered already.
    """

    def __init__(
        self,
        context: MultimodalSequence,
        *,
        media: MediaOptions,
        turns: Sequence[RememberedTurn] = (),
    ) -> None:
        self.context = context
        self.media = media
        self._turns = [*turns]

    @property
    def num_images(self) -> int:
        """Images in the context; each tile and each frame of a video is one."""
        return len(self.context.images)

    @property
    def num_positions(self) -> int:
        """Positions fed. The text after the last image waits for the next question, and does not count."""
        return self.context.num_positions

    @property
    def turns(self) -> tuple[RememberedTurn, ...]:
        """What is remembered, oldest first."""
        return tuple(self._turns)

    def ingest(
        self,
        images: Sequence[ImageSource] = (),
        *,
        videos: Sequence[str | Path] = (),
        progress: Progress | None = None,
    ) -> Ingested:
        """Show images and videos; the next question goes on from there. May be called again to show more.

        Args:
            images: Paths or Pillow images; paths can be encoded again when the session was saved and is rewound.
            videos: Paths; each becomes a clip before the images.
            progress: Called as images are decoded and encoded, and their positions fed.

        Raises:
            InputError: If an image or a video cannot be used, or the whole does not fit; says how many images do. Images
                before a broken one stay in the context, whole. An interrupt leaves it at the last checkpoint.
        """
        begin = time.perf_counter()
        before = self.num_images, self.num_positions
        turn = build_message(None, images=images, videos=videos, options=self.media)
        work = RequestMetrics(progress)
        self._expect(turn, work, tail="", spare=0, place="ingest: the images take")
        skipped = self.context.show(turn, on_broken=self.media.on_broken, work=work)
        work.finish()
        return Ingested(
            num_images=self.num_images - before[0],
            num_positions=self.num_positions - before[1],
            skipped=tuple(skipped),
            seconds=time.perf_counter() - begin,
            timings=work.timings.by_stage(),
        )

    append = ingest
    """The same, by the name that reads better once there is a context."""

    def ask(
        self,
        query: str,
        images: Sequence[ImageSource] = (),
        *,
        videos: Sequence[str | Path] = (),
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        remember: bool = False,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> GenerationOutput:
        """Answer a question about what is in the context, and about what is shown with it.

        Args:
            query: The question. `<image>` marks where each of ``images`` goes; without any, they come first.
            images: Shown with this question, after what is in the context.
            videos: Likewise.
            sampling: How the answer is generated; greedily by default.
            max_new_tokens: At most so many tokens; stands in for that of ``sampling``.
            remember: Keep question and answer in the context. Otherwise it is afterwards what it was before.
            on_text: Called with each piece of the answer as it becomes certain.
            progress: Called as the prompt is fed.

        Raises:
            InputError: As for `LongLLaVA.generate`. The context is then as it was, as it is after an interrupt.
        """
        begin = time.perf_counter()
        sampling = sampling or SamplingParams()
        if max_new_tokens is not None:
            sampling = replace(sampling, max_new_tokens=max_new_tokens)
        turn = build_message(query, images=images, videos=videos, options=self.media)
        work = RequestMetrics(progress)
        with self._prompted(turn, work, spare=sampling.max_new_tokens, stay=remember) as prompted:
            first = time.perf_counter()
            prompt_tokens, num_images = self.num_positions, self.num_images
            with work.timings.measure("decode"):
                text, tokens = self._decode(prompted.logits, sampling, on_text or (lambda _: None))
        answer = text.text.strip()
        if remember:
            self.context.append_text(ASSISTANT_ROLE + answer + SEPARATOR + USER_ROLE)
            self._turns.append(RememberedTurn(turn.text, answer, num_images))
        at_limit = len(tokens) == sampling.max_new_tokens and not text.is_stopped
        return GenerationOutput(
            text=answer,
            token_ids=tuple(tokens),
            finish_reason="length" if at_limit else "stop",
            prompt_tokens=prompt_tokens,
            num_images=num_images,
            prefill_s=first - begin,
            decode_s=time.perf_counter() - first,
            timings=work.timings.by_stage(),
            skipped=prompted.skipped,
        )

    def score(
        self, query: str, token_ids: Sequence[int], *, images: Sequence[ImageSource] = ()
    ) -> NDArray[np.float32]:
        """Return the scores from which each token of a given answer would be chosen; the context stays as it is.

        Args:
            query: As for `ask`.
            token_ids: The answer.
            images: As for `ask`.

        Returns:
            Logits. [len(token_ids), vocab_size].
        """
        turn = build_message(query, images=images, options=self.media)
        with self._prompted(turn, RequestMetrics(), spare=len(token_ids), stay=False) as prompted:
            rows = [prompted.logits, *(self._step(token) for token in token_ids[:-1])]
        return np.stack(rows[: len(token_ids)])

    def rewind(self, to_image: int, *, progress: Progress | None = None) -> None:
        """Go back to where so many images had been shown, and forget all that was shown and said after them.

        The images since the last checkpoint, at most fifteen by default, are encoded and fed again.

        Raises:
            InputError: If there are not so many images, or one that must be encoded again is gone or has changed; the
                context is then as it was.
        """
        if not 0 <= to_image <= self.num_images:
            raise InputError(
                f"rewind: must be from 0 to {self.num_images}, the images in the context, got {to_image}"
            )
        self.context.rewind(to_image, RequestMetrics(progress))
        self._turns = [turn for turn in self._turns if turn.num_images < to_image]

    def fork(self) -> Session:
        """Return an independent session with the same context."""
        return Session(self.context.fork(), media=self.media, turns=self._turns)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the session to a folder, whole or not at all; `LongLLaVA.load_session` reads it.

        Args:
            folder: Must be absent or empty, unless ``overwrite``.
            overwrite: Replace a session that is there.

        Raises:
            InputError: If the folder is taken, or cannot be written.
        """
        from longllava_trt.runtime.session_file import save_session

        save_session(self, Path(folder), overwrite=overwrite)

    @contextmanager
    def _prompted(
        self, turn: Message, work: RequestMetrics, *, spare: int, stay: bool
    ) -> Generator[_Prompted, None, None]:
        """Feed a question and lend the scores after it; then go back, or to the question's end if it is to stay."""
        tail = SEPARATOR + ASSISTANT_ROLE
        self._expect(turn, work, tail=tail, spare=spare, place="generate: the prompt takes")
        start = back = self.context.snapshot()
        try:
            skipped = self.context.show(turn, on_broken=self.media.on_broken, work=work)
            if stay:
                # a role begins with a special token, at which ids may be cut
                self.context.append_text(SEPARATOR)
                self.context.prefill_pending(work)
                back = self.context.snapshot()
                self.context.append_text(ASSISTANT_ROLE)
            else:
                self.context.append_text(tail)
            logits = self.context.prefill_pending(work)
            work.finish()
            yield _Prompted(logits, tuple(skipped))
        except BaseException:
            self.context.restore(start)
            raise
        self.context.restore(back)

    def _expect(
        self, turn: Message, work: RequestMetrics, *, tail: str, spare: int, place: str
    ) -> None:
        """Refuse what cannot fit, before any work, and make room for what can."""
        length = self.context.check_fits(turn, tail=tail, spare=spare, place=place)
        self.context.reserve(length + spare)
        work.expect(begin=self.num_positions, end=length)

    def _decode(
        self, logits: NDArray[np.float32], sampling: SamplingParams, emit: Callable[[str], None]
    ) -> tuple[IncrementalDetokenizer, list[int]]:
        """Generate the answer, handing out its text as it becomes certain."""
        model = self.context.model
        text = IncrementalDetokenizer(model.tokenizer.stream(), sampling.stop)
        tokens: list[int] = []
        for token in generate_tokens(
            model.decoder,
            self.context.state,
            logits,
            embed=lambda token: model.embed_tokens([token]),
            eos_token_id=model.eos_token_id,
            sampling=sampling,
        ):
            tokens.append(token)
            emit(text.push(token))
            if text.is_stopped:
                break
        emit(text.finish())
        return text, tokens

    def _step(self, token: int) -> NDArray[np.float32]:
        model = self.context.model
        return model.decoder.step(model.embed_tokens([token]), self.context.state)
