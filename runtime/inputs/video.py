"""Video files: the frames that are shown, and their pixels.

PyAV decodes. Frames are chosen by index, as in the original, not by time stamp. Knows nothing about
the prompt. Nothing is kept: a clip is decoded once to count its frames, and again up to the last
chosen frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.models.image_layout import Size
from longllava_trt.runtime.inputs.sources import check_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["VideoClip", "choose_frames", "open_clip", "subsample"]


def choose_frames(
    num_frames: int, *, fps: float, seconds_per_frame: float, max_frames: int
) -> tuple[int, ...]:
    """Return the indices of the frames to show: one for each interval, at most `max_frames`."""
    interval = max(int(min(fps * seconds_per_frame, num_frames)), 1)
    kept = range(0, num_frames, interval)
    return tuple(kept[i] for i in subsample(len(kept), limit=max_frames))


def subsample(num_items: int, *, limit: int) -> tuple[int, ...]:
    """Return the indices of at most ``limit`` items, evenly spread from the first to the last."""
    if num_items <= limit:
        return tuple(range(num_items))
    return tuple(np.linspace(0, num_items - 1, limit).astype(int).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoClip:
    """A video file and its frames that are shown."""

    path: Path
    where: str
    """Name of the video in errors."""
    indices: tuple[int, ...]
    """Frames to show, counted from 0, ascending."""
    size: Size | None = None
    """Width and height of the first frame in pixels, upright; None if nobody asks."""

    def frames(self) -> Iterator[Image.Image]:
        """Yield the chosen frames as RGB, upright; each is decoded when it is needed.

        Raises:
            InputError: If the file has changed since it was opened.
        """
        wanted = iter(self.indices)
        index = next(wanted)
        for number, frame in enumerate(_decode(self.path, self.where)):
            if number == index:
                yield _upright(frame)
                if (index := next(wanted, -1)) < 0:
                    return
        raise InputError(f"{self.where}: has fewer frames than a moment ago; leave it unchanged")


def open_clip(
    source: str | Path, *, position: int, seconds_per_frame: float, max_frames: int
) -> VideoClip:
    """Count a video's frames and choose those to show.

    Args:
        source: A file's path.
        position: Its place among the user's videos, counted from 1; errors name it.
        seconds_per_frame: Seconds of video for each frame that is shown.
        max_frames: Largest number of frames.

    Raises:
        InputError: If the file cannot be read, holds no video, or no frame.
        MissingDependencyError: If PyAV is not installed.
    """
    path = Path(source)
    where = f"video {position} ({path})"
    check_file(path, where)
    fps = _read_fps(path, where)
    num_frames, size = _measure(path, where)
    if num_frames == 0:
        raise InputError(f"{where}: has no frame; is it cut off or damaged?")
    indices = choose_frames(
        num_frames, fps=fps, seconds_per_frame=seconds_per_frame, max_frames=max_frames
    )
    return VideoClip(path=path, where=where, indices=indices, size=size)


def _measure(path: Path, where: str) -> tuple[int, Size | None]:
    """Return the number of frames, and the size of the first."""
    frames = _decode(path, where)
    first = next(frames, None)
    if first is None:
        return 0, None
    size = (first.width, first.height)
    return 1 + sum(1 for _ in frames), size[::-1] if first.rotation % 180 else size


def _read_fps(path: Path, where: str) -> float:
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            rate = stream and (stream.guessed_rate or stream.average_rate)
    except av.FFmpegError as err:
        raise InputError(
            f"{where}: not a video that can be read ({err.strerror}); check the file"
        ) from err
    if stream is None:
        raise InputError(f"{where}: holds no picture, only sound or text; name a video")
    if not rate or rate < 0:
        raise InputError(
            f"{where}: announces no frame rate, by which frames are chosen; convert it to MP4"
        )
    return float(rate)


def _decode(path: Path, where: str) -> Iterator[Any]:
    """Yield every frame of the first video stream."""
    av = _import_av()
    number = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream), start=1):  # noqa: B007
                yield frame
    except av.FFmpegError as err:
        raise InputError(
            f"{where}: cannot be decoded after frame {number} ({err.strerror}); is it cut off or damaged?"
        ) from err


def _upright(frame: Any) -> Image.Image:
    """Return a frame turned upright: phones store the rotation, not rotated pixels."""
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError as err:
        raise MissingDependencyError(
            "video: PyAV is not installed; videos need the 'video' extra: "
            "pip install 'longllava-trt[video]'"
        ) from err
    return av
