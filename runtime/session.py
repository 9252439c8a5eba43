"""A sequence for many calls: show images once, ask any number of questions about them.

By default a question does not change the sequence: its text, its answer and its images are dropped
after the answer. A remembered question stays with its answer, exactly as the chat format writes
earlier turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.core.errors import InputError
from longllava_trt.core.logs import Progress
from longllava_trt.runtime.content import RememberedTurn
from longllava_trt.runtime.decode import generate_tokens
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.message import Message
from longllava_trt.runtime.inputs.sources import Images, Videos
from longllava_trt.runtime.option_checks import is_whole
from longllava_trt.runtime.request_checks import answer_ids, limited, question_text
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.sequence import MultimodalSequence, Prompted
from longllava_trt.runtime.session_file import write_session
from longllava_trt.runtime.text.detokenizer import GenerationOutput, IncrementalDetokenizer
from longllava_trt.runtime.timings import RequestMetrics
from longllava_trt.runtime.written_prompt import WrittenPrompt, written_prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ingested", "RememberedTurn", "Session"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """Images that were shown, and what they cost."""

    num_images: int
    """Images added; each tile and each frame of a video is one."""
    num_positions: int
    """Positions added."""
    skipped: tuple[str, ...]
    """Images that were left out, each with the reason."""
    seconds: float
    timings: dict[str, float]
    """Seconds by stage, as in `GenerationOutput`."""


class Session:
    """A sequence and questions about it; made by `LongLLaVA.session`.

    After any error or interrupt the sequence is valid, and `num_images` tells what is in it. All
    sessions of one model together serve one call at a time.

    Args:
        sequence: Sequence of this session alone.
        media: Options for images and videos.
    """

    def __init__(self, sequence: MultimodalSequence, *, media: MediaOptions | None = None) -> None:
        if media is not None and not isinstance(media, MediaOptions):
            raise InputError(f"media: expected MediaOptions, got {type(media).__name__}")
        self.sequence = sequence
        self.media = media or MediaOptions()

    @property
    def num_images(self) -> int:
        """Images in the sequence; each tile and each frame of a video is one."""
        return len(self.sequence.content.images)

    @property
    def num_positions(self) -> int:
        """Positions fed; without the text after the last image, which the next question feeds."""
        return self.sequence.num_positions

    @property
    def turns(self) -> tuple[RememberedTurn, ...]:
        """Questions and answers that are remembered, oldest first."""
        return self.sequence.content.turns

    def ingest(
        self,
        images: Images = (),
        *,
        videos: Videos = (),
        progress: Progress | None = None,
    ) -> Ingested:
        """Show images and videos, for all later questions. May be called again to show more.

        Args:
            images: One image or several: paths, Pillow images, bytes of image files, or arrays
                [height, width, 3] uint8. Only images from paths can be encoded again in a session
                that was saved and is rewound.
            videos: One path or several; each becomes a clip before the images.
            progress: Called as images are decoded and encoded, and their positions fed.

        Raises:
            InputError: If an image or a video cannot be used, or not all images fit; then it gives
                the number that fits. Images before a broken one stay in the sequence. An interrupt
                leaves the sequence at its last checkpoint.
        """
        begin = time.perf_counter()
        before = self.num_images, self.num_positions
        turn = self._message(None, images=images, videos=videos)
        work = RequestMetrics(progress)
        self._expect(turn, work, tail="", spare=0, where="ingest: the images take")
        skipped = self.sequence.ingest(turn, on_broken=self.media.on_broken, work=work)
        work.finish()
        return Ingested(
            num_images=self.num_images - before[0],
            num_positions=self.num_positions - before[1],
            skipped=skipped,
            seconds=time.perf_counter() - begin,
            timings=work.timings.by_stage(),
        )

    append = ingest
    """The same method under a name for later calls."""

    def ask(
        self,
        query: str,
        images: Images = (),
        *,
        videos: Videos = (),
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        remember: bool = False,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> GenerationOutput:
        """Answer a question about the images in the sequence and those shown with the question.

        Args:
            query: The question. `<image>` marks the place of each of ``images``; without any, they
                come first.
            images: Images shown with this question, after those in the sequence.
            videos: Videos shown with this question.
            sampling: Options for choosing tokens; greedy by default.
            max_new_tokens: Largest number of tokens; used instead of the one in ``sampling``.
            remember: Keep question and answer in the sequence; otherwise it does not change.
            on_text: Called with each piece of the answer as it becomes certain.
            progress: Called as the prompt is fed.

        Raises:
            InputError: As for `LongLLaVA.generate`. The sequence is then as it was, also after an
                interrupt.
        """
        begin = time.perf_counter()
        sampling = limited(sampling or SamplingParams(), max_new_tokens)
        turn = self._message(question_text(query), images=images, videos=videos)
        work = RequestMetrics(progress)
        prompted = self._prompt(turn, work, spare=sampling.max_new_tokens, remember=remember)
        first = time.perf_counter()
        with work.timings.measure("decode"):
            text, tokens = self._decode(prompted, sampling, on_text or (lambda _: None))
        answer = text.text.strip()
        if remember:
            question = turn.written(self.sequence.runner.chat.image_placeholder)
            self.sequence.remember(prompted, question, answer)
        at_limit = len(tokens) == sampling.max_new_tokens and not text.is_stopped
        return GenerationOutput(
            text=answer,
            token_ids=tuple(tokens),
            finish_reason="length" if at_limit else "stop",
            prompt_tokens=prompted.num_positions,
            num_images=prompted.num_images,
            prefill_s=first - begin,
            decode_s=time.perf_counter() - first,
            timings=work.timings.by_stage(),
            skipped=prompted.skipped,
        )

    def score(
        self, query: str, token_ids: Sequence[int], *, images: Images = ()
    ) -> NDArray[np.float32]:
        """Return the logits for each token of a given answer; the sequence does not change.

        Args:
            query: As for `ask`.
            token_ids: Ids of the answer.
            images: As for `ask`.

        Returns:
            Logits. [len(token_ids), vocab_size], float32.
        """
        ids = answer_ids(token_ids, self.sequence.runner.vocab_size)
        turn = self._message(question_text(query), images=images)
        prompted = self._prompt(turn, RequestMetrics(), spare=len(ids), remember=False)
        decoder, embed = self.sequence.runner.decoder, self.sequence.runner.embed_tokens
        rows = [prompted.logits]
        rows += [decoder.step(embed([token]), prompted.state) for token in ids[:-1]]
        return np.stack(rows)

    def written_prompt(
        self, query: str, images: Images = (), *, videos: Videos = ()
    ) -> WrittenPrompt:
        """Return the prompt of a question as one text, without running anything.

        Args:
            query: As for `ask`.
            images: As for `ask`.
            videos: As for `ask`.
        """
        turn = self._message(question_text(query), images=images, videos=videos)
        return written_prompt(self.sequence.runner, self.sequence.content, turn)

    def rewind(self, to_image: int, *, progress: Progress | None = None) -> None:
        """Go back to the point after `to_image` images; forget all that was shown and said later.

        The images since the last checkpoint, at most fifteen by default, are encoded and fed again.

        Raises:
            InputError: If there are fewer images, or one that must be encoded again is gone or has
                changed; the context is then as it was.
        """
        if not is_whole(to_image) or not 0 <= to_image <= self.num_images:
            raise InputError(
                f"rewind: must be from 0 to {self.num_images}, the images in the sequence, "
                f"got {to_image!r}"
            )
        self.sequence.rewind(int(to_image), RequestMetrics(progress))

    def fork(self) -> Session:
        """Return an independent session with the same content."""
        return Session(self.sequence.fork(), media=self.media)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the session to a folder, whole or not at all; `LongLLaVA.load_session` reads it.

        Args:
            folder: Must be absent or empty, unless ``overwrite``.
            overwrite: Replace a session in the folder.

        Raises:
            InputError: If the folder is not empty, or cannot be written.
        """
        write_session(self.sequence, self.media, Path(folder), overwrite=overwrite)

    def _message(self, query: str | None, *, images: Images, videos: Videos = ()) -> Message:
        return self.sequence.runner.message(query, images=images, videos=videos, options=self.media)

    def _prompt(
        self, turn: Message, work: RequestMetrics, *, spare: int, remember: bool
    ) -> Prompted:
        """Feed a question that fits; the sequence does not change."""
        tail = self.sequence.runner.chat.tail
        self._expect(turn, work, tail=tail, spare=spare, where="generate: the prompt takes")
        prompted = self.sequence.prompt(
            turn, on_broken=self.media.on_broken, work=work, remember=remember
        )
        work.finish()
        return prompted

    def _expect(
        self, turn: Message, work: RequestMetrics, *, tail: str, spare: int, where: str
    ) -> None:
        """Raise an error if a message does not fit, before any work; else make room for it."""
        length = self.sequence.check_fits(turn, tail=tail, spare=spare, where=where)
        self.sequence.reserve(length + spare)
        work.expect(begin=self.num_positions, end=length)

    def _decode(
        self, prompted: Prompted, sampling: SamplingParams, emit: Callable[[str], None]
    ) -> tuple[IncrementalDetokenizer, list[int]]:
        """Generate the answer, and emit each piece of its text when it is certain."""
        runner = self.sequence.runner
        stop = (*sampling.stop, *runner.chat.stop)
        text = IncrementalDetokenizer(runner.tokenizer.stream(), stop)
        tokens: list[int] = []
        for token in generate_tokens(
            runner.decoder,
            prompted.state,
            prompted.logits,
            embed=lambda token: runner.embed_tokens([token]),
            eos_token_ids=runner.eos_token_ids,
            sampling=sampling,
        ):
            tokens.append(token)
            emit(text.push(token))
            if text.is_stopped:
                break
        emit(text.finish())
        return text, tokens
