"""Text and images of a turn belong together: each placeholder's image is the one the text means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longllava_trt.core.errors import InputError
from longllava_trt.models.image_layout import PatchGrid
from longllava_trt.models.image_spec import ImageSpec
from longllava_trt.models.llava_jamba.chat import CHAT
from longllava_trt.models.llava_jamba.image_policy import IMAGE_POLICY
from longllava_trt.runtime.inputs.images import Load, ViewCutter, open_images
from longllava_trt.runtime.inputs.message import (
    MediaOptions,
    Message,
    MessageFormat,
    build_message,
)

FRAME = "<img><image></img>"
CUTTER = ViewCutter(ImageSpec(aspect_ratio="pad"), PatchGrid(image_size=336, side=12), IMAGE_POLICY)
FORM = MessageFormat(CHAT, CUTTER)


def still(level: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (level, 0, 0))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two videos at one frame a second: of 5 frames from level 100, of 3 from level 200."""
    folder = tmp_path_factory.mktemp("films")
    return [write_video(folder / "a.mp4", 100, 5), write_video(folder / "b.mp4", 200, 3)]


def write_video(path: Path, level: int, num_frames: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for i in range(num_frames):
            pixels = np.full((48, 64, 3), (level + 10 * i, 0, 0), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def turn(query: str | None, images: Any = (), videos: Any = (), **options: Any) -> Message:
    return build_message(
        query, images=images, videos=videos, options=MediaOptions(**options), form=FORM
    )


def written(shown: Message) -> str:
    return shown.written("<image>")


def levels(shown: Message) -> list[int]:
    """Return the red of each image, in tens; there must be one for each placeholder."""
    images = [load() for load in loads(shown)]
    assert len(images) == shown.num_images == written(shown).count("<image>")
    return [round(float(np.asarray(i)[..., 0].mean()) / 10) * 10 for i in images]


def loads(shown: Message) -> Iterator[Load]:
    return (load for group in shown.groups for load in open_images(group.images, CUTTER))


def test_stills_stand_where_the_text_says() -> None:
    shown = turn("<image> or <image>?", [still(10), still(20)])
    assert written(shown) == f"{FRAME} or {FRAME}?"
    assert levels(shown) == [10, 20]


def test_clips_come_first_in_their_order_then_the_stills(films: list[Path]) -> None:
    shown = turn("Is <image> in it?", [still(10)], films)
    first, second = "<t>".join([FRAME] * 5), "<t>".join([FRAME] * 3)
    assert written(shown) == f"<vid>{first}</vid><vid>{second}</vid>Is {FRAME} in it?"
    assert levels(shown) == [100, 110, 120, 130, 140, 200, 210, 220, 10]


def test_stills_without_placeholders_stand_between_clip_and_question(films: list[Path]) -> None:
    shown = turn("What?", [still(10)], films[1:])
    assert written(shown) == f"<vid>{'<t>'.join([FRAME] * 3)}</vid>{FRAME}\nWhat?"
    assert levels(shown) == [200, 210, 220, 10]


def test_frames_are_capped_for_each_video(films: list[Path]) -> None:
    assert levels(turn("What?", [], films, max_frames=2)) == [100, 140, 200, 220]
    assert levels(turn("What?", [], films, seconds_per_frame=2)) == [100, 120, 140, 200, 220]


def test_official_clip_holds_frames_and_stills_and_is_capped_again(films: list[Path]) -> None:
    shown = turn("What?", [still(10)], films, official_compat=True)
    assert written(shown) == f"<vid>{(FRAME + '<t>') * 8}<img><image></img</vid>What?"
    assert levels(shown) == [100, 110, 120, 130, 140, 200, 210, 220, 10]
    # 4 and 3 frames and a still, of which linspace keeps the places 0, 2, 4 and 7
    capped = turn("What?", [still(10)], films, official_compat=True, max_frames=4)
    assert levels(capped) == [100, 120, 200, 10]


def test_official_stills_without_a_video_are_as_ever() -> None:
    stills = [still(10), still(20)]
    official = turn("<image> or <image>?", stills, official_compat=True)
    assert written(official) == written(turn("<image> or <image>?", stills))


def test_tiles_follow_their_overview() -> None:
    shown = turn(
        "<image> or <image>?",
        [still(10, (672, 336)), still(20, (336, 672))],
        high_resolution=True,
    )
    assert written(shown) == (
        f"<img><image>\n{FRAME}{FRAME}</img> or <img><image>\n{FRAME}\n{FRAME}</img>?"
    )
    assert levels(shown) == [10, 10, 10, 20, 20, 20]


def test_official_tiles_keep_the_images_order_and_nest_in_the_text() -> None:
    shown = turn(
        "<image> or <image>?",
        [still(10, (672, 336)), still(20, (336, 672))],
        high_resolution=True,
        official_compat=True,
    )
    assert written(shown) == f"<img><image>\n{FRAME}\n{FRAME}\n{FRAME}{FRAME}</img> or {FRAME}?"
    assert levels(shown) == [10, 10, 10, 20, 20, 20]


def test_frames_are_not_tiled(films: list[Path]) -> None:
    shown = turn("What?", [still(10, (336, 336))], films[1:], high_resolution=True)
    assert written(shown) == (
        f"<vid>{'<t>'.join([FRAME] * 3)}</vid><img><image>\n{FRAME}</img>\nWhat?"
    )
    assert levels(shown) == [200, 210, 220, 10, 10]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        still(30, (400, 300)).save(path)
    shown = turn("What?", paths, high_resolution=True)
    paths[2].unlink()
    pending = loads(shown)
    assert sum(1 for _ in zip(range(6), pending, strict=False)) == 6
    with pytest.raises(InputError, match=r"image 3 \(.*2\.png\): cannot be opened"):
        next(pending)


def test_a_still_that_changes_meanwhile_is_explained(tmp_path: Path) -> None:
    still(10, (400, 300)).save(tmp_path / "a.png")
    shown = turn("What?", [tmp_path / "a.png"], high_resolution=True)
    still(10, (100, 300)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"image 1 \(.*a\.png\): is not the size"):
        list(loads(shown))


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (" ", {}, "the text is empty"),
        (" ", {"official_compat": True}, "the text is empty"),
        ("<image>?", {}, "got 1 for 0 images"),
        ("<image>?", {"official_compat": True}, "one clip, and got '<image>'"),
        ("Hi", {"official_compat": True, "high_resolution": True}, "does not tile the frames"),
        ("Hi", {"official_compat": True, "on_broken": "skip"}, "leave out on_broken='skip'"),
        ("Hi", {"on_broken": "ask"}, "must be 'stop' or 'skip', got 'ask'"),
        (None, {"official_compat": True}, "give the images with the question"),
        ("Hi", {"max_frames": 0}, "max_frames must be at least 1, got 0"),
        ("Hi", {"seconds_per_frame": -1.0}, "seconds_per_frame must be a number from 0"),
        ("Hi", {"seconds_per_frame": float("nan")}, "seconds_per_frame must be a number from 0"),
    ],
    ids="blank official-blank placeholder official-placeholder official-tiles official-skip on-broken "
    "official-open no-frames "
    "negative-seconds nan-seconds".split(),
)
def test_bad_requests_are_explained(
    query: str | None, options: dict[str, Any], message: str, films: list[Path]
) -> None:
    with pytest.raises(InputError, match=message):
        turn(query, [], films[1:], **options)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (ImageSpec(aspect_ratio="pad"), "has no tiles"),
        (
            ImageSpec(aspect_ratio="anyres", pinpoints=((336, 672),)),
            "cuts images into tiles by itself",
        ),
    ],
)
def test_high_resolution_is_refused_where_it_means_nothing(images: ImageSpec, why: str) -> None:
    form = MessageFormat(CHAT, ViewCutter(images, PatchGrid(image_size=336, side=24), None))
    still = Image.new("RGB", (400, 300))
    with pytest.raises(InputError, match=f"high_resolution means nothing for this model, .* {why}"):
        build_message("What?", images=still, options=MediaOptions(high_resolution=True), form=form)


@pytest.mark.parametrize("asked", [{"images": Image.new("RGB", (4, 3))}, {"videos": "film.mp4"}])
def test_a_text_model_refuses_media(asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="this model takes text alone; leave out images"):
        build_message("What?", **asked, options=MediaOptions(), form=MessageFormat(CHAT, None))
    assert (
        build_message("What?", options=MediaOptions(), form=MessageFormat(CHAT, None)).written(
            "<image>"
        )
        == "What?"
    )


def test_positions_are_those_of_the_size_that_a_header_says() -> None:
    spec = ImageSpec(
        aspect_ratio="anyres",
        pinpoints=((336, 672), (672, 336)),
        merge="spatial_unpad",
    )
    cutter = ViewCutter(spec, PatchGrid(image_size=336, side=24), None)
    form = MessageFormat(CHAT, cutter)
    wide, tall = Image.new("RGB", (640, 200)), Image.new("RGB", (200, 640))
    message = build_message("What?", images=[wide, tall], options=MediaOptions(), form=form)
    shown = [image for group in message.groups for image in group.images]
    assert [image.size for image in shown] == [(640, 200), (200, 640)]
    assert [cutter.layout(image).canvas.size for image in shown] == [(672, 336), (336, 672)]  # type: ignore[union-attr]
