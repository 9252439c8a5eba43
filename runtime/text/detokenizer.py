"""Ids of an answer, one at a time, to text that can be shown at once, up to a stop text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from longllava_trt.runtime.text.tokenizer import TokenStream

__all__ = ["GenerationOutput", "IncrementalDetokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOutput:
    """One answer and its cost."""

    text: str
    """Text before the stop text, without white space at its ends."""
    token_ids: tuple[int, ...]
    """All ids that were generated, those of a stop text too."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model or a stop text ended the answer. `length`: `max_new_tokens` ended it."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    num_images: int
    """Images in the context; each tile and each frame of a video is one."""
    prefill_s: float
    """Seconds from the call to the first token's logits: images, vision, projector and prompt."""
    decode_s: float
    """Seconds for all tokens after the first."""
    timings: Mapping[str, float]
    """Seconds by stage: `decode_image` (sum over threads), `vision`, `projector`, `embed`,
    `prefill`, `decode`."""
    skipped: tuple[str, ...] = ()
    """Images that were left out, each with the reason."""

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Rate after the first token, or None if there was only one."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps > 0 else None


class IncrementalDetokenizer:
    """Turns ids into text and ends it before the first stop text.

    The answer ends with the first id after which its text contains a stop text. The joined results
    of `push` and `finish` are the answer: text that could be the start of a stop text is held back.

    Args:
        stream: The decoder of a new answer.
        stop: Texts that end it.
    """

    def __init__(self, stream: TokenStream, stop: Sequence[str]) -> None:
        self.is_stopped = False
        """Whether a stop text has come; no more ids are taken then."""
        self._stream = stream
        self._stop = tuple(stop)
        self._held = ""
        self._shown: list[str] = []

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain now; often empty."""
        self._held += self._stream.push(token_id)
        if not self._stop:
            return self._release(keep=0)
        # newlines are byte pieces, which the stream holds back: they may be the stop text
        readable = self._held + self._stream.pending()
        found = [at for stop in self._stop if (at := readable.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return self._show(readable[: min(found)])
        return self._release(keep=max(_overlap(self._held, s) for s in self._stop))

    def finish(self) -> str:
        """Return the text that is still held back."""
        if self.is_stopped:
            return ""
        self._held += self._stream.finish()
        return self._release(keep=0)

    def _release(self, *, keep: int) -> str:
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return self._show(certain)

    def _show(self, text: str) -> str:
        self._shown.append(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
