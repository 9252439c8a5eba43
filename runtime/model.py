"""LongLLaVA from a bundle: questions about images and videos in, streamed answers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.core.errors import InputError, ManifestError
from longllava_trt.core.logs import Progress
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.stage_spec import STAGES
from longllava_trt.runtime.backends.base import (
    BACKENDS,
    Backend,
    BackendName,
    OrtBackend,
    StageSession,
    StepDecoder,
    TrtBackend,
)
from longllava_trt.runtime.backends.ort.session import Kernels
from longllava_trt.runtime.inputs.encoder import ImageEncoder
from longllava_trt.runtime.inputs.image_files import ImageSource
from longllava_trt.runtime.inputs.message import MediaOptions
from longllava_trt.runtime.inputs.pixels import load_processor_config
from longllava_trt.runtime.prefill import PrefillChunker
from longllava_trt.runtime.sampling import SamplingParams
from longllava_trt.runtime.sequence import MultimodalSequence
from longllava_trt.runtime.session import Session
from longllava_trt.runtime.text.detokenizer import GenerationOutput
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GenerationOutput", "LongLLaVA", "RunOptions"]

_HASH_AT_LOAD_BYTES = 64 * 2**20
"""Files up to this size are hashed whenever a bundle is loaded; larger ones are compared by length."""

_CHECKPOINT_EVERY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a bundle is run."""

    backend: BackendName = "ort"
    """`ort`, ONNX Runtime on the CPU; `trt`, the bundle's TensorRT engines on the GPU at hand; `kernels`, PyTorch with this
    project's Triton kernels there."""
    kernels: Kernels = "fast"
    """Of ONNX Runtime: `fast`, or `bodies` for plain ONNX Runtime with nothing registered."""
    num_threads: int | None = None
    """Threads of one operator; by default one a core."""
    chunk_size: int = 512
    """Prompt positions fed to the decoder at a time."""
    vision_batch: int = 4
    """Images encoded at a time."""
    max_context: int = 176_000
    """Most positions of prompt and answer together; the model was trained up to this length."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(
                f"run: backend must be one of {', '.join(BACKENDS)}, got '{self.backend}'"
            )
        for name in ("chunk_size", "vision_batch", "max_context"):
            if getattr(self, name) < 1:
                raise InputError(f"run: {name} must be at least 1, got {getattr(self, name)}")


class LongLLaVA:
    """A loaded bundle.

    Build it with `from_bundle`. Stages load when first needed. One instance serves one call at a time.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        options: How to run it.
        backend: What runs its stages; by default the one that ``options`` names.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        options: RunOptions,
        *,
        backend: Backend | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest = manifest
        self.options = options
        self.backend = backend or _open_backend(bundle, manifest, options)
        self.tokenizer = ChatTokenizer(bundle)
        self.eos_token_id = _read_number(bundle / "generation_config.json", "eos_token_id")
        self.num_image_tokens = int(manifest.stage("projector").spec.outputs[0].shape[1])
        self.chunker = PrefillChunker(
            longest=options.chunk_size,
            num_heads=_read_number(bundle / "config.json", "num_attention_heads"),
            weight_bytes=sum(weight.nbytes for weight in manifest.weights.values()),
            materialises_scores=self.backend.materialises_scores,
        )

    @classmethod
    def from_bundle(cls, bundle: str | Path, options: RunOptions | None = None) -> LongLLaVA:
        """Open a bundle.

        Args:
            bundle: Folder made by `longllava-trt export`.
            options: How to run it.

        Raises:
            ManifestError: If the folder is no bundle, lacks a stage, or a file differs from its record. Files over
                64 MiB are compared by length here; `longllava-trt verify` hashes them too.
        """
        folder = Path(bundle)
        manifest = Manifest.load(folder)
        for stage in STAGES:
            manifest.stage(stage)
        differences = manifest.differences(folder, hash_up_to_bytes=_HASH_AT_LOAD_BYTES)
        if differences:
            raise ManifestError(
                f"{folder}: files differ from what was exported: {'; '.join(differences)}; export it again"
            )
        return cls(folder, manifest, options or RunOptions())

    @cached_property
    def vision(self) -> StageSession:
        """The vision stage."""
        return self.backend.load_stage("vision")

    @cached_property
    def projector(self) -> StageSession:
        """The projector stage."""
        return self.backend.load_stage("projector")

    @cached_property
    def embed(self) -> StageSession:
        """The embed stage."""
        return self.backend.load_stage("embed")

    @cached_property
    def decoder(self) -> StepDecoder:
        """The decoder stage."""
        return self.backend.load_decoder()

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Images to embeddings; its stages load with the first image."""
        return ImageEncoder(
            lambda: self.vision,
            lambda: self.projector,
            processor=load_processor_config(self.bundle),
            batch_size=self.options.vision_batch,
            num_workers=self.options.num_threads,
        )

    def embed_tokens(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings of ids. [1, len(ids), hidden_size]."""
        input_ids = np.array([ids], dtype=np.int64)
        embeds: NDArray[np.float32] = self.embed.run({"input_ids": input_ids})["inputs_embeds"]
        return embeds

    def session(
        self, *, media: MediaOptions | None = None, checkpoint_every: int = _CHECKPOINT_EVERY
    ) -> Session:
        """Return a session without any image.

        Args:
            media: How images and videos are shown.
            checkpoint_every: Images between the points to which the session can go back at no cost. Each takes as much
                memory as the recurrent state.
        """
        context = MultimodalSequence(self, checkpoint_every=checkpoint_every)
        return Session(context, media=media or MediaOptions())

    def load_session(self, folder: str | Path) -> Session:
        """Return a session that `Session.save` wrote; may be used and changed without changing the folder.

        Raises:
            InputError: If it is none, is damaged, is another version's or another bundle's, or is longer than this model's
                ``max_context``.
        """
        from longllava_trt.runtime.session_file import load_session

        return load_session(self, Path(folder))

    def chat(
        self, query: str, images: Sequence[ImageSource] = (), *, max_new_tokens: int | None = None
    ) -> str:
        """Answer a question about images; see `generate`."""
        return self.generate(query, images, max_new_tokens=max_new_tokens).text

    def generate(
        self,
        query: str,
        images: Sequence[ImageSource] = (),
        *,
        videos: Sequence[str | Path] = (),
        media: MediaOptions | None = None,
        sampling: SamplingParams | None = None,
        max_new_tokens: int | None = None,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> GenerationOutput:
        """Answer a question about images and videos.

        Args:
            query: The question. `<image>` marks where each still image goes; without any, images come first.
            images: Paths or Pillow images, in the order of the placeholders.
            videos: Paths; each becomes a clip before the question.
            media: How images and videos are shown.
            sampling: How the answer is generated; greedily by default.
            max_new_tokens: At most so many tokens; stands in for that of ``sampling``.
            on_text: Called with each piece of the answer as it becomes certain.
            progress: Called as the prompt is fed.

        Raises:
            InputError: If the question is empty, an image or a video cannot be used, placeholders and images do not
                match, or the whole does not fit.
            MissingDependencyError: If there is a video and the `video` extra is not installed.
        """
        context = MultimodalSequence(
            self, checkpoint_every=_CHECKPOINT_EVERY, keep_checkpoints=False
        )
        return Session(context, media=media or MediaOptions()).ask(
            query,
            images,
            videos=videos,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            on_text=on_text,
            progress=progress,
        )


def _open_backend(bundle: Path, manifest: Manifest, options: RunOptions) -> Backend:
    if options.backend == "trt":
        from longllava_trt.runtime.backends.trt.engines import open_engines

        return TrtBackend(open_engines(bundle))
    if options.backend == "kernels":
        from longllava_trt.runtime.backends.kernels.requirements import check_machine

        # before the backend is imported, which needs what may be missing
        check_machine(manifest.dtype)
        from longllava_trt.runtime.backends.kernels.backend import KernelsBackend

        return KernelsBackend(
            bundle, manifest, max_context=options.max_context, chunk_size=options.chunk_size
        )
    return OrtBackend(bundle, manifest, kernels=options.kernels, num_threads=options.num_threads)


def _read_number(path: Path, key: str) -> int:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ManifestError(
            f"{path}: must be JSON with an integer '{key}' ({err}); export the bundle again"
        ) from err
