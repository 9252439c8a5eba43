"""Settings of a benchmark: measurements and repeats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longllava_trt.core.errors import InputError
from longllava_trt.models.chat import IMAGE_PLACEHOLDER

__all__ = ["BenchSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """Measurements and repeats."""

    image_counts: tuple[int, ...] = (0, 1, 10)
    """Numbers of images shown; each is measured once, from the fewest to the most."""
    prompt: str = "What do these images show?"
    """Question of every run."""
    new_tokens: int = 32
    """Tokens of every answer; the model cannot end it earlier."""
    warmup: int = 1
    """Repeats before the measured ones; with 0, the first measured one also loads and compiles."""
    repeats: int = 5
    """Measured repeats."""
    images: tuple[Path, ...] = ()
    """Images to show in turn; empty for drawn ones."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("image counts", min(self.image_counts, default=-1), 0),
                # the first token is the prompt's, and a rate needs one after it
                ("new tokens", self.new_tokens, 2),
                ("warm-up", self.warmup, 0),
                ("repeats", self.repeats, 1),
            )
            if value < least
        ]
        if IMAGE_PLACEHOLDER in self.prompt:
            problems.append(
                f"the prompt must not hold {IMAGE_PLACEHOLDER}, as it is asked about several numbers of images"
            )
        if problems:
            raise InputError(f"bench: {'; '.join(problems)}")

    @property
    def ascending(self) -> tuple[int, ...]:
        """Numbers of images, each once, fewest first, so that memory of earlier runs is reused."""
        return tuple(sorted(set(self.image_counts)))
