"""LongLLaVA from a bundle: questions about images and videos in, streamed answers out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.core.logs import Progress
from longllava_trt.core.manifest import Manifest
from longllava_trt.runtime.backends.base import Backend
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.sources import Images, Videos
from longllava_trt.runtime.options import RunOptions
from longllava_trt.runtime.runner import Runner
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.sequence import MultimodalSequence
from longllava_trt.runtime.session import Session
from longllava_trt.runtime.session_file import read_session
from longllava_trt.runtime.text.detokenizer import GenerationOutput

__all__ = ["GenerationOutput", "LongLLaVA", "RunOptions"]

_HASH_AT_LOAD_BYTES = 64 * 2**20
"""Files up to this size are hashed when a bundle is loaded; larger ones are compared by length."""

_CHECKPOINT_EVERY = 16


class LongLLaVA:
    """A loaded bundle.

    Build it with `from_bundle`. A stage is loaded when it is first needed. One instance serves one
    call at a time.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        options: Options for running it.
        backend: Runs its stages; by default the backend that ``options`` names.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        options: RunOptions,
        *,
        backend: Backend | None = None,
    ) -> None:
        self.runner = Runner(bundle, manifest, options, backend=backend)
        """Loaded bundle and its backend; sequences and benchmarks use it directly."""

    @property
    def bundle(self) -> Path:
        """Folder."""
        return self.runner.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.runner.manifest

    @property
    def options(self) -> RunOptions:
        """Options for running it."""
        return self.runner.options

    @classmethod
    def from_bundle(cls, bundle: str | Path, options: RunOptions | None = None) -> LongLLaVA:
        """Open a bundle.

        Args:
            bundle: Folder made by `longllava-trt export`.
            options: Options for running it.

        Raises:
            ManifestError: If the folder is no bundle, lacks a stage, or a file differs from its
                record. Files over 64 MiB are compared by length here; `longllava-trt verify` hashes
                them too.
        """
        if not isinstance(bundle, str | os.PathLike):
            raise InputError(f"bundle: expected a folder's path, got {type(bundle).__name__}")
        if options is not None and not isinstance(options, RunOptions):
            raise InputError(f"options: expected RunOptions, got {type(options).__name__}")
        folder = Path(bundle)
        manifest = Manifest.load(folder)
        differences = manifest.differences(folder, hash_up_to_bytes=_HASH_AT_LOAD_BYTES)
        if differences:
            raise ManifestError(
                f"{folder}: files differ from what was exported: {'; '.join(differences)}; "
                "export it again"
            )
        return cls(folder, manifest, options or RunOptions())

    def session(
        self, *, media: MediaOptions | None = None, checkpoint_every: int = _CHECKPOINT_EVERY
    ) -> Session:
        """Return a session without any image.

        Args:
            media: Options for images and videos.
            checkpoint_every: Number of images between checkpoints; the session can go back to a
                checkpoint at no cost. Each takes as much memory as the recurrent state.
        """
        sequence = MultimodalSequence(self.runner, checkpoint_every=checkpoint_every)
        return Session(sequence, media=media)

    def load_session(self, folder: str | Path) -> Session:
        """Return a session that `Session.save` wrote. Using it does not change the folder.

        Raises:
            InputError: If the folder is no session, is damaged, was made by another version or with
                another bundle, or is longer than this model's ``max_context``.
        """
        sequence, media = read_session(self.runner, Path(folder))
        return Session(sequence, media=media)

    def chat(self, query: str, images: Images = (), *, max_new_tokens: int | None = None) -> str:
        """Answer a question about images; see `generate`."""
        return self.generate(query, images, max_new_tokens=max_new_tokens).text

    def generate(
        self,
        query: str,
        images: Images = (),
        *,
        videos: Videos = (),
        media: MediaOptions | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> GenerationOutput:
        """Answer a question about images and videos.

        Args:
            query: The question. `<image>` marks the place of each still image; without any, images
                come first.
            images: One image or several, in the order of the placeholders: paths, Pillow images,
                bytes of image files, or arrays [height, width, 3] uint8.
            videos: One path or several; each becomes a clip before the question.
            media: Options for images and videos.
            sampling: Options for choosing tokens; greedy by default.
            max_new_tokens: Largest number of tokens; used instead of the one in ``sampling``.
            on_text: Called with each piece of the answer as it becomes certain.
            progress: Called as the prompt is fed.

        Raises:
            InputError: If the question is empty, an image or a video cannot be used, placeholders
                and images do not match, or the prompt does not fit.
            MissingDependencyError: If there is a video and the `video` extra is not installed.
        """
        sequence = MultimodalSequence(
            self.runner, checkpoint_every=_CHECKPOINT_EVERY, keep_checkpoints=False
        )
        return Session(sequence, media=media).ask(
            query,
            images,
            videos=videos,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            on_text=on_text,
            progress=progress,
        )
