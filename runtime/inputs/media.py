"""Options for images and videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.option_checks import check, flag, number, whole_number

__all__ = ["MediaOptions", "OnBroken"]

OnBroken = Literal["stop", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """Options for showing images and videos."""

    high_resolution: bool = False
    """Show each still as an overview and tiles of the vision tower's size; video frames never."""
    seconds_per_frame: float = 1.0
    """Seconds of video for each frame that is shown."""
    max_frames: int = 128
    """Largest number of frames of a video, evenly spread; the model has been shown up to 1200."""
    official_compat: bool = False
    """Write the same strings as the original code, faults included."""
    on_broken: OnBroken = "stop"
    """Policy for a still that cannot be used: `stop` with an error, or `skip` it and report it."""

    def __post_init__(self) -> None:
        seconds = "a number from 0 (every frame)"
        check(
            "media",
            [
                flag("high_resolution", self.high_resolution),
                number(
                    "seconds_per_frame", self.seconds_per_frame, seconds, least=0, most=_LONGEST
                ),
                whole_number("max_frames", self.max_frames, at_least=1),
                flag("official_compat", self.official_compat),
            ],
        )
        if self.on_broken not in ("stop", "skip"):
            raise InputError(f"media: on_broken must be 'stop' or 'skip', got '{self.on_broken}'")
        if self.official_compat and self.on_broken == "skip":
            raise InputError(
                "media: official_compat writes one text for all images; leave out on_broken='skip'"
            )


_LONGEST = float("1e308")
