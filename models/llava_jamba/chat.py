"""Chat format of LongLLaVA, and the texts of its original code for clips and tiles."""

from __future__ import annotations

from collections.abc import Sequence

from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.image_policy import TileGrid
from longllava_trt.models.llava_jamba.image_policy import tile_texts

__all__ = ["CHAT", "OriginalLongLLaVA"]

_ROLE_TOKEN = "<|startoftext|>"
_OPEN, _CLOSE = "<img>", "</img>"
_OPEN_VIDEO, _CLOSE_VIDEO, _BETWEEN_FRAMES = "<vid>", "</vid>", "<t>"

_CLIPPED_CLOSE = "</img"
"""The original strips the last separator as a set of characters, and so also the tag's end."""


class OriginalLongLLaVA:
    """Texts of the original's own code, faults included."""

    def clip(self, query: str, *, num_frames: int) -> list[str]:
        """Return the texts around the frames of a clip before a query.

        A clip of one frame holds no whole `</img>`, so the original wraps its placeholder once
        more, unless the query holds one.
        """
        between = [_CLOSE + _BETWEEN_FRAMES + _OPEN] * (num_frames - 1)
        opening, closing = _OPEN_VIDEO + _OPEN, _CLIPPED_CLOSE + _CLOSE_VIDEO + query
        if num_frames == 1 and _CLOSE not in query:
            opening, closing = opening + _OPEN, _CLOSE + closing
        return [opening, *between, closing]

    def tiles(self, texts: Sequence[str], grids: Sequence[tuple[int, int]]) -> list[str]:
        """Return the texts around all views: all tiles nest in the first image's tag.

        Each image's tiles replace the first placeholder of the present text, while the pixels stay
        in the images' order. For one image the text is right.
        """
        written = list(texts)
        for rows, columns in grids:
            first, *rest = tile_texts(TileGrid(rows, columns), _OPEN, _CLOSE)
            written[:2] = [written[0] + first, *rest[:-1], rest[-1] + written[1]]
        return written


CHAT = ChatFormat(
    user_role=f"{_ROLE_TOKEN}<|User|>\n",
    assistant_role=f"{_ROLE_TOKEN}<|Assistant|>\n",
    separator="\n",
    image_placeholder="<image>",
    image_open=_OPEN,
    image_close=_CLOSE,
    video_open=_OPEN_VIDEO,
    video_close=_CLOSE_VIDEO,
    between_frames=_BETWEEN_FRAMES,
    role_token=_ROLE_TOKEN,
    original=OriginalLongLLaVA(),
)
