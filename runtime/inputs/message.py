"""A message from a caller's text, images and videos.

Headers are opened and video frames counted at once, so that a request that cannot fit is refused
before any work; `longllava_trt.runtime.inputs.images` decodes pixels later.
"""

from __future__ import annotations

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.images import ImageGroup, Message, MessageFormat, Text
from longllava_trt.runtime.inputs.media import MediaOptions, OnBroken
from longllava_trt.runtime.inputs.original import original_message
from longllava_trt.runtime.inputs.sources import Images, Videos, image_sources, video_sources
from longllava_trt.runtime.inputs.writer import MessageWriter

__all__ = [
    "ImageGroup",
    "MediaOptions",
    "Message",
    "MessageFormat",
    "OnBroken",
    "Text",
    "build_message",
]


def build_message(
    query: str | None,
    *,
    images: Images = (),
    videos: Videos = (),
    options: MediaOptions,
    form: MessageFormat,
) -> Message:
    """Return one message with text, images and videos.

    Each video becomes a clip before the text, in the order given. Stills go to the placeholders of
    the query; if it has none, before it. With `official_compat` and any video, all frames and then
    all stills become one clip, as in the original.

    Special tokens in the query's text keep their meaning, as in the original, so a query can open
    another turn. No role has privileges here, so users can harm only their own answers; a service
    that puts strangers' text into its prompts must clean that text itself.

    Args:
        query: Text of the message; None if the text comes later.
        images: One image or several, as `image_sources` takes them.
        videos: One path or several.
        options: Options for showing them.
        form: Format of the model family.

    Raises:
        InputError: If the question is blank or no text, placeholders and stills do not match, or a
            file cannot be used.
    """
    if query is not None and not isinstance(query, str):
        raise InputError(f"prompt: expected a text, got {type(query).__name__}")
    if not isinstance(options, MediaOptions):
        raise InputError(f"media: expected MediaOptions, got {type(options).__name__}")
    if query is not None and not query.strip():
        raise InputError("prompt: the text is empty; type a question or an instruction")
    stills, clips = image_sources(images), video_sources(videos)
    if stills or clips or options.high_resolution:
        form.require_cutter()
    writer = MessageWriter(options, form)
    if options.official_compat:
        return original_message(query, stills, clips, writer)
    return Message((*writer.clips(clips), *writer.parts(query, stills)))
