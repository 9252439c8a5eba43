"""Parts of a loaded bundle for sequences: backend, limits, tokenizer, image encoder, chat format.

Stages load when first needed. `LongLLaVA` is the face of this; sequences and sessions know this only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longllava_trt.core.errors import ConfigError, ManifestError
from longllava_trt.core.json_file import read_json_object
from longllava_trt.core.manifest import Manifest
from longllava_trt.models.chat import ChatFormat
from longllava_trt.models.family import ModelFamily
from longllava_trt.models.image_layout import PatchGrid
from longllava_trt.models.registry import (
    load_bundle_spec,
    load_chat,
    load_family,
    trained_context,
)
from longllava_trt.models.spec import ModelSpec
from longllava_trt.runtime.backends.base import Backend, SequenceState, StageSession, StepDecoder
from longllava_trt.runtime.inputs.encoder import ImageEncoder, Projected
from longllava_trt.runtime.inputs.images import ViewCutter
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.inputs.message import Message, MessageFormat, build_message
from longllava_trt.runtime.inputs.processor import ImageProcessorConfig, load_processor_config
from longllava_trt.runtime.inputs.sources import Images, Videos
from longllava_trt.runtime.open_backend import open_backend
from longllava_trt.runtime.options import RunOptions
from longllava_trt.runtime.prefill import PrefillChunker
from longllava_trt.runtime.text.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Runner"]

logger = logging.getLogger(__name__)


class Runner:
    """A loaded bundle, without any sequence.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        options: How to run it.
        backend: What runs its stages; by default the one that ``options`` names.

    Raises:
        ManifestError: If a file of the bundle is missing, or cannot be used.
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
        family, spec = _read_model(bundle)
        for stage in spec.stages:
            manifest.stage(stage)
        self.chat = _read_chat(bundle, options)
        self.form = MessageFormat(self.chat, _cutter_of(spec, family))
        self.tokenizer = ChatTokenizer(bundle, self.chat)
        self.vocab_size = int(manifest.stage("decoder").spec.outputs[0].shape[-1])
        self.eos_token_ids = read_end_ids(bundle / "generation_config.json", self.vocab_size)
        heads = (attention.num_heads for attention in spec.decoder.attention_layers.values())
        self._num_heads = max(heads, default=1)
        self.max_context = options.max_context or trained_context(spec)
        """Most positions of one sequence, if the backend has room for them."""
        self.backend = backend or open_backend(
            bundle, manifest, options, max_context=self.max_context
        )

    @property
    def capacity(self) -> int:
        """Most positions of one sequence, prompt and answer together."""
        return _least(self.max_context, self.backend.limits.capacity)

    @property
    def more_capacity(self) -> str:
        """Advice in errors on how a sequence gets more positions."""
        if self.capacity < self.max_context:
            return "build engines with a larger --max-context"
        return "raise --max-context"

    @cached_property
    def chunk_size(self) -> int:
        """Prompt positions fed at a time: what the options say, or the backend, within its limit."""
        limits = self.backend.limits
        wanted = self.options.chunk_size or limits.preferred_chunk
        used = _adapted("chunk_size", wanted, limits.longest_chunk)
        # a chunk between two of these would be cut into many calls, each of which reads all weights
        fitting = max((size for size in limits.chunk_sizes if size <= used), default=used)
        if fitting != used:
            logger.info(
                "chunk_size: %d is used, the size below %d that needs one call", fitting, used
            )
        return fitting

    @cached_property
    def vision_batch(self) -> int:
        """Images encoded at a time, likewise."""
        limits = self.backend.limits
        wanted = self.options.vision_batch or limits.preferred_vision_batch
        return _adapted("vision_batch", wanted, limits.largest_vision_batch)

    @cached_property
    def used_options(self) -> RunOptions:
        """The options with what was chosen in the place of `auto` and None."""
        return replace(
            self.options,
            backend=self.backend.name,
            chunk_size=self.chunk_size,
            vision_batch=self.vision_batch,
            max_context=self.max_context,
        )

    @cached_property
    def chunker(self) -> PrefillChunker:
        """Length of the chunks that are fed."""
        return PrefillChunker(
            longest=self.chunk_size,
            num_heads=self._num_heads,
            weight_bytes=sum(weight.nbytes for weight in self.manifest.weights.values()),
            materialises_scores=self.backend.materialises_scores,
        )

    @cached_property
    def cutter(self) -> ViewCutter:
        """Rules by which images are cut."""
        return self.form.require_cutter()

    @cached_property
    def processor(self) -> ImageProcessorConfig:
        """Format of the pixels that the vision stage expects."""
        found = load_processor_config(self.bundle, aspect_ratio=self.cutter.images.aspect_ratio)
        side = self.cutter.patches.image_size
        if found.image_size != side:
            raise ManifestError(
                f"{self.bundle / 'preprocessor_config.json'}: 'size' must be the vision tower's {side} pixels, got "
                f"{found.image_size}; take the checkpoint's own file, and export again"
            )
        return found

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
            lambda pixels: self.vision.run({"pixel_values": pixels})["image_features"],
            self._project,
            processor=self.processor,
            cutter=self.cutter,
            batch_size=self.vision_batch,
            num_workers=self.options.num_threads,
        )

    def _project(self, features: NDArray[np.float32]) -> Projected:
        found = self.projector.run({"image_features": features})
        return Projected(found["image_embeds"], found.get("image_newline"))

    def new_state(self, *, capacity: int) -> SequenceState:
        """Return the decoder's state of a sequence that has not begun."""
        return self.backend.new_state(capacity=_least(capacity, self.backend.limits.capacity))

    def embed_tokens(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the embeddings of ids. [1, len(ids), hidden_size], float32."""
        input_ids = np.array([ids], dtype=np.int64)
        embeds: NDArray[np.float32] = self.embed.run({"input_ids": input_ids})["inputs_embeds"]
        return embeds

    def message(
        self,
        query: str | None,
        *,
        images: Images = (),
        videos: Videos = (),
        options: MediaOptions | None = None,
    ) -> Message:
        """Return a message in this model's format; see `build_message`."""
        return build_message(
            query, images=images, videos=videos, options=options or MediaOptions(), form=self.form
        )


def read_end_ids(path: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the ids that end an answer, from a bundle's generation_config.json.

    Raises:
        ManifestError: If `eos_token_id` is neither an id of the vocabulary nor a list of such.
    """
    found = _read_json(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    good = [
        i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size
    ]
    if not ids or len(good) < len(ids):
        raise ManifestError(
            f"{path}: 'eos_token_id' must be an id from 0 to {vocab_size - 1} or a list of such, got "
            f"{found!r}; without one no answer would end: correct it in the checkpoint and export again"
        )
    return tuple(dict.fromkeys(good))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path, whose="a bundle carries it")
    except ConfigError as err:
        raise ManifestError(f"{err}; export the bundle again") from err


def _read_model(bundle: Path) -> tuple[ModelFamily, ModelSpec]:
    try:
        return load_family(bundle), load_bundle_spec(bundle)
    except ConfigError as err:
        raise ManifestError(f"{err}; export the bundle again") from err


def _cutter_of(spec: ModelSpec, family: ModelFamily) -> ViewCutter | None:
    """Return the rules by which images are cut; None for a text model."""
    if spec.vision is None or spec.connector is None:
        return None
    patches = PatchGrid.of(spec.vision, spec.connector)
    return ViewCutter(spec.images, patches, family.image_policy)


def _read_chat(bundle: Path, options: RunOptions) -> ChatFormat:
    try:
        return load_chat(bundle, options.prompt_format)
    except ConfigError as err:
        raise ManifestError(f"{err}") from err


def _least(wanted: int, limit: int | None) -> int:
    return wanted if limit is None else min(wanted, limit)


def _adapted(option: str, wanted: int, limit: int | None) -> int:
    """Return an option's value within the backend's limit, and say so if that is another."""
    used = _least(wanted, limit)
    if used != wanted:
        logger.info("%s: %d is more than the backend takes, %d is used", option, wanted, used)
    return used
