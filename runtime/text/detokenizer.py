"""The answer as text: from ids as they arrive to pieces that may be shown, up to a stop text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from longllava_trt.runtime.text.tokenizer import TokenStream

__all__ = ["GenerationOutput", "IncrementalDetokenizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOutput:
    """One answer and what it cost."""

    text: str
    """Up to the stop text, without it, and without white space at its ends."""
    token_ids: tuple[int, ...]
    """All that were generated; a stop text's own are among them."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended it, or a stop text did. `length`: `max_new_tokens` did."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    num_images: int
    """Images in the context; each tile and each frame of a video is one."""
    prefill_s: float
    """From the call to the first token's logits: image decoding, vision, projector and prompt."""
    decode_s: float
    """For all tokens after the first."""
    timings: Mapping[str, float]
    """Seconds by stage: `decode_image`, summed over threads, `vision`, `projector`, `embed`, `prefill`, `decode`."""
    skipped: tuple[str, ...] = ()
    """Images that were left out, each with the reason."""

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Rate after the first token, or None if there was only one."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps > 0 else None


class IncrementalDetokenizer:
    """Turns ids into text and ends it before the first stop text.

    The answer ends with the first id after which its text holds a stop text. What `push` and `finish` return, joined,
    is the answer: nothing in it could still become a part of a stop text, however that is spread over ids.

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
        """All that was returned so far."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that became certain; often empty."""
        self._held += self._stream.push(token_id)
        if not self._stop:
            return self._release(keep=0)
        # newlines are byte pieces, which the stream holds until their run ends: they may be the stop text
        readable = self._held + self._stream.pending()
        found = [at for stop in self._stop if (at := readable.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return self._show(readable[: min(found)])
        return self._release(keep=max(_overlap(self._held, s) for s in self._stop))

    def finish(self) -> str:
        """Return what is still held back."""
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
    """Return the length of the longest end of a text with which a stop text begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
