"""Choice of a video's frames, on files made here whose frames are known by their colour."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.runtime.inputs.video import VideoClip, choose_frames, open_clip, subsample

if TYPE_CHECKING:
    from PIL import Image

WIDTH, HEIGHT = 64, 48
MATRIX = struct.Struct(">9i")
ONE = 0x10000


def colour(index: int) -> tuple[int, int, int]:
    """Return a frame's colour; no two of 60 are near each other, nor are red and blue alike."""
    return 20 + index % 8 * 30, 20 + index // 8 * 30, 128


def index_of(image: Image.Image) -> int:
    """Read a frame's number back from its colour, in the lower half."""
    red, green, blue = np.asarray(image)[HEIGHT // 2 + 4 :].mean(axis=(0, 1))
    assert abs(blue - 128) < 20
    return int(np.rint((green - 20) / 30) * 8 + np.rint((red - 20) / 30))


def write_video(
    path: Path,
    num_frames: int,
    *,
    fps: Fraction | int = 5,
    codec: str = "libx264",
    times: list[int] | None = None,
) -> Path:
    """Write frames of one colour each, white in the upper half; `times` in hundredths of a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv444p" if codec == "libx264" else "yuv420p"
        for i in range(num_frames):
            pixels = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
            pixels[HEIGHT // 2 :] = colour(i)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def opened(path: Path, *, seconds: float = 1.0, most: int = 128) -> VideoClip:
    return open_clip(path, position=1, seconds_per_frame=seconds, max_frames=most)


@pytest.mark.parametrize(
    ("num_frames", "fps", "seconds", "expected"),
    [
        (13, 5, 1.0, (0, 5, 10)),
        (10, 5, 1.0, (0, 5)),
        (1, 30, 1.0, (0,)),
        (0, 30, 1.0, ()),
        (5, 0.5, 1.0, (0, 1, 2, 3, 4)),
        (60, 29.97, 1.0, (0, 29, 58)),
        (100, 23.976, 2.0, (0, 47, 94)),
        (4, 30, 0.0, (0, 1, 2, 3)),
    ],
    ids=["whole", "end", "one", "none", "slow", "ntsc", "two-seconds", "every"],
)
def test_one_frame_an_interval(
    num_frames: int, fps: float, seconds: float, expected: tuple[int, ...]
) -> None:
    chosen = choose_frames(num_frames, fps=fps, seconds_per_frame=seconds, max_frames=128)
    assert chosen == expected


def test_too_many_frames_are_thinned_out_evenly_and_truncated() -> None:
    # 3.75, 7.5 and 11.25 truncate
    assert subsample(16, limit=5) == (0, 3, 7, 11, 15)
    assert subsample(16, limit=1) == (0,)
    assert subsample(16, limit=16) == tuple(range(16))
    assert choose_frames(47, fps=3, seconds_per_frame=1, max_frames=5) == (0, 9, 21, 33, 45)


@pytest.mark.parametrize("limit", [128, 1200])
def test_the_cap_can_be_lifted(limit: int) -> None:
    chosen = choose_frames(3600 * 25, fps=25, seconds_per_frame=1, max_frames=limit)
    assert len(set(chosen)) == limit
    assert chosen[0] == 0
    assert chosen[-1] == 3599 * 25


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_of_a_file_are_those_chosen_in_rgb(suffix: str, codec: str, tmp_path: Path) -> None:
    clip = opened(write_video(tmp_path / f"film{suffix}", 23, codec=codec))
    assert clip.indices == (0, 5, 10, 15, 20)
    frames = list(clip.frames())
    assert [index_of(f) for f in frames] == [0, 5, 10, 15, 20]
    assert {(f.mode, f.size) for f in frames} == {("RGB", (WIDTH, HEIGHT))}


@pytest.mark.parametrize(
    ("fps", "seconds", "most", "expected"),
    [
        (Fraction(30000, 1001), 0.2, 128, [0, 5, 10, 15, 20]),
        (10, 1.0, 128, [0, 10, 20]),
        (1, 1.0, 4, [0, 7, 14, 22]),
        (5, 0.0, 128, list(range(23))),
        (2, 100.0, 128, [0]),
    ],
    ids=["ntsc", "ten", "capped", "every", "first-only"],
)
def test_rate_and_options_choose_the_frames_of_a_file(
    fps: Fraction | int, seconds: float, most: int, expected: list[int], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "film.mp4", 23, fps=fps)
    frames = opened(path, seconds=seconds, most=most).frames()
    assert [index_of(frame) for frame in frames] == expected


def test_frames_of_a_variable_rate_are_counted_not_timed(tmp_path: Path) -> None:
    times = [*range(0, 100, 20), *range(300, 1300, 200)]
    path = write_video(tmp_path / "film.mkv", 10, times=times)
    assert opened(path).indices == (0, 5)
    assert [index_of(f) for f in opened(path).frames()] == [0, 5]


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    clip = opened(write_video(tmp_path / "film.mp4", 1))
    assert [index_of(f) for f in clip.frames()] == [0]


def test_frames_are_decoded_as_they_are_asked_for_and_again(tmp_path: Path) -> None:
    clip = opened(write_video(tmp_path / "film.mp4", 23))
    frames: Iterator[Image.Image] = clip.frames()
    assert index_of(next(frames)) == 0
    assert [index_of(f) for f in clip.frames()] == [0, 5, 10, 15, 20]
    assert index_of(next(frames)) == 5


@pytest.mark.parametrize(
    ("matrix", "white"),
    [
        ((0, ONE, 0, -ONE, 0, 0, HEIGHT * ONE, 0, 0x40000000), "right"),
        ((0, -ONE, 0, ONE, 0, 0, 0, WIDTH * ONE, 0x40000000), "left"),
        ((-ONE, 0, 0, 0, -ONE, 0, WIDTH * ONE, HEIGHT * ONE, 0x40000000), "bottom"),
    ],
    ids=["clockwise", "counterclockwise", "upside-down"],
)
def test_a_turn_stored_in_the_file_is_made(
    matrix: tuple[int, ...], white: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "film.mp4", 2)
    content = path.read_bytes()
    plain = MATRIX.pack(ONE, 0, 0, 0, ONE, 0, 0, 0, 0x40000000)
    at = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:at] + MATRIX.pack(*matrix) + content[at + MATRIX.size :])
    (frame,) = opened(path).frames()
    pixels = np.asarray(frame)
    assert frame.size == ((WIDTH, HEIGHT) if white == "bottom" else (HEIGHT, WIDTH))
    edges = {"left": pixels[:, :4], "right": pixels[:, -4:], "bottom": pixels[-4:]}
    assert {name for name, edge in edges.items() if edge.min() > 240} == {white}


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def cut_off(path: Path) -> None:
    content = write_video(path, 20).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without_frames(path: Path) -> None:
    """A container that announces a picture and holds none: its only packets are gone."""
    content = write_video(path.with_suffix(".avi"), 20, codec="mpeg4").read_bytes()
    path.write_bytes(content[: content.index(b"movi") + 4])


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "cannot be opened"),
    "folder": (lambda p: p.mkdir(), "expected a file"),
    "zero-bytes": (lambda p: p.write_bytes(b""), "is empty"),
    "text": (lambda p: p.write_text("no film" * 99), "not a video that can be read"),
    "cut-off": (cut_off, "not a video that can be read"),
    "sound": (write_sound, "holds no picture"),
    "no-frames": (without_frames, "has no frame"),
}


@pytest.mark.parametrize(("make", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_explained(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    make(path)
    with pytest.raises(InputError, match=rf"video 1 \(.*film\.mp4\).*{message}"):
        opened(path)


def test_a_file_that_changes_meanwhile_is_explained(tmp_path: Path) -> None:
    clip = opened(write_video(tmp_path / "film.mp4", 23))
    write_video(tmp_path / "film.mp4", 7)
    with pytest.raises(InputError, match="fewer frames"):
        list(clip.frames())


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "film.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"longllava-trt\[video\]"):
        opened(path)
