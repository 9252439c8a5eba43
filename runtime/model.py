"""LongLLaVA from a bundle: questions about images in, streamed answers out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.contracts import STAGES
from longllava_trt.errors import InputError, ManifestError
from longllava_trt.logs import Progress, ProgressEvent
from longllava_trt.manifest import Manifest
from runtime.decoder import Decoder, DecoderState
from runtime.generate import greedy_tokens
from runtime.images import load_processor_config
from runtime.ingest import ImageSource, embed_segments, encode_images, in_chunks
from runtime.onnxrt import Kernels, OnnxSession
from runtime.prompt import (
    build_prompt,
    prompt_length,
    split_segments,
    tokenize_prompt,
    wrap_images,
)
from runtime.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Answer", "LongLLaVA", "RunOptions"]

_HASH_AT_LOAD_BYTES = 64 * 2**20
"""Files up to this size are hashed whenever a bundle is loaded; larger ones are compared by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a bundle is run."""

    kernels: Kernels = "fast"
    """`fast`, or `bodies` for plain ONNX Runtime with nothing registered."""
    num_threads: int | None = None
    """Threads of one operator; by default one a core."""
    chunk_size: int = 512
    """Prompt positions fed to the decoder at a time."""
    vision_batch: int = 4
    """Images encoded at a time."""
    max_context: int = 176_000
    """Most positions of prompt and answer together; the model was trained up to this length."""

    def __post_init__(self) -> None:
        for name in ("chunk_size", "vision_batch", "max_context"):
            if getattr(self, name) < 1:
                raise InputError(f"run: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer and what it cost."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    """Positions of the prompt, images included."""
    prefill_s: float
    """From the call to the first token's logits: image decoding, vision, projector and prompt."""
    decode_s: float
    """For all tokens after the first."""

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Rate after the first token, or None if there was only one."""
        steps = len(self.token_ids) - 1
        return steps / self.decode_s if steps > 0 else None


class LongLLaVA:
    """A loaded bundle.

    Build it with `from_bundle`. Stages load when first needed. One instance serves one call at a time.
    """

    def __init__(self, bundle: Path, manifest: Manifest, options: RunOptions) -> None:
        self.bundle = bundle
        self.manifest = manifest
        self.options = options
        self.tokenizer = ChatTokenizer(bundle)
        self.eos_token_id = _read_eos(bundle)
        self.num_image_tokens = int(manifest.stage("projector").spec.outputs[0].shape[1])
        self._processor = load_processor_config(bundle)

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

    def session(self, stage: str) -> OnnxSession:
        """Load one stage with this model's options."""
        return OnnxSession(
            self.bundle,
            self.manifest,
            stage,
            kernels=self.options.kernels,
            num_threads=self.options.num_threads,
        )

    @cached_property
    def vision(self) -> OnnxSession:
        """The vision stage."""
        return self.session("vision")

    @cached_property
    def projector(self) -> OnnxSession:
        """The projector stage."""
        return self.session("projector")

    @cached_property
    def embed(self) -> OnnxSession:
        """The embed stage."""
        return self.session("embed")

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder stage."""
        return Decoder(self.session("decoder"))

    def chat(
        self, query: str, images: Sequence[ImageSource] = (), *, max_new_tokens: int = 768
    ) -> str:
        """Answer a question about images; see `generate`."""
        return self.generate(query, images, max_new_tokens=max_new_tokens).text

    def generate(
        self,
        query: str,
        images: Sequence[ImageSource] = (),
        *,
        max_new_tokens: int = 768,
        on_text: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question about images.

        Args:
            query: The question. `<image>` marks where each image goes; without any, images come first.
            images: Paths or Pillow images, in the order of the placeholders.
            max_new_tokens: At most so many tokens.
            on_text: Called with each piece of the answer as it becomes readable.
            progress: Called as the prompt is fed.

        Raises:
            InputError: If the question is empty, an image cannot be used, placeholders and images do not match, or
                the whole does not fit.
        """
        begin = time.perf_counter()
        ids = tokenize_prompt(
            build_prompt(wrap_images(query, num_images=len(images))), self.tokenizer
        )
        length = self._check_length(ids, max_new_tokens)
        state = self.decoder.new_state(capacity=length + max_new_tokens)
        logits = self._prefill(ids, images, state, length, progress)
        first = time.perf_counter()
        tokens: list[int] = []
        stream = self.tokenizer.stream()
        emit = on_text or (lambda _: None)
        for token in greedy_tokens(
            self.decoder,
            state,
            logits,
            embed=self._embed_token,
            eos_token_id=self.eos_token_id,
            max_new_tokens=max_new_tokens,
        ):
            tokens.append(token)
            emit(stream.push(token))
        emit(stream.finish())
        return Answer(
            text=self.tokenizer.decode(tokens).strip(),
            token_ids=tuple(tokens),
            prompt_tokens=length,
            prefill_s=first - begin,
            decode_s=time.perf_counter() - first,
        )

    def _check_length(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """Return the prompt's positions, or say why the request cannot fit."""
        if max_new_tokens < 1:
            raise InputError(f"generate: max_new_tokens must be at least 1, got {max_new_tokens}")
        length = prompt_length(ids, self.num_image_tokens)
        limit = self.options.max_context
        if length + max_new_tokens > limit:
            raise InputError(
                f"generate: the prompt takes {length} positions and the answer up to {max_new_tokens}, the cache "
                f"has {limit}; show fewer images, ask for fewer tokens, or raise --max-context"
            )
        return length

    def _prefill(
        self,
        ids: Sequence[int],
        images: Sequence[ImageSource],
        state: DecoderState,
        length: int,
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        """Feed the prompt in chunks; returns the logits after it."""
        pieces = embed_segments(
            split_segments(ids), embed=self.embed, image_embeds=self._encode(images)
        )
        logits = None
        for chunk in in_chunks(pieces, self.options.chunk_size):
            if progress is not None:
                progress(ProgressEvent("prefill", state.past_len, length, "tokens"))
            logits = self.decoder.step(chunk, state)
        if progress is not None:
            progress(ProgressEvent("prefill", state.past_len, length, "tokens"))
        assert logits is not None, "Bug: a prompt is never empty"
        return logits

    def _encode(self, images: Sequence[ImageSource]) -> Iterator[NDArray[np.float32]]:
        if images:
            yield from encode_images(
                images,
                processor=self._processor,
                vision=self.vision,
                projector=self.projector,
                batch_size=self.options.vision_batch,
            )

    def _embed_token(self, token: int) -> NDArray[np.float32]:
        ids = np.array([[token]], dtype=np.int64)
        embeds: NDArray[np.float32] = self.embed.run({"input_ids": ids})["inputs_embeds"]
        return embeds


def _read_eos(bundle: Path) -> int:
    path = bundle / "generation_config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["eos_token_id"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ManifestError(
            f"{path}: must be JSON with an integer 'eos_token_id' ({err}); export the bundle again"
        ) from err
