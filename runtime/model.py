"""LongLLaVA from a bundle: questions about images and videos in, streamed answers out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longllava_trt.contracts import STAGES
from longllava_trt.errors import InputError, ManifestError
from longllava_trt.logs import Progress, ProgressEvent
from longllava_trt.manifest import Manifest
from runtime.answer import Answer, AnswerText
from runtime.decoder import Decoder, DecoderState
from runtime.generate import generate_tokens
from runtime.images import ImageSource
from runtime.ingest import embed_segments, encode_images, in_chunks
from runtime.media import MediaOptions, UserTurn, prepare_turn
from runtime.onnxrt import Kernels, OnnxSession
from runtime.pixels import load_processor_config
from runtime.prompt import build_prompt, prompt_length, split_segments, tokenize_prompt
from runtime.sampling import SamplingParams
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
    ) -> Answer:
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
        begin = time.perf_counter()
        sampling = sampling or SamplingParams()
        if max_new_tokens is not None:
            sampling = replace(sampling, max_new_tokens=max_new_tokens)
        turn = prepare_turn(query, images=images, videos=videos, options=media or MediaOptions())
        ids = tokenize_prompt(build_prompt(turn.text), self.tokenizer)
        length = self._check_length(ids, sampling.max_new_tokens)
        state = self.decoder.new_state(capacity=length + sampling.max_new_tokens)
        logits = self._prefill(ids, turn, state, length, progress)
        first = time.perf_counter()
        text, tokens = self._decode(logits, state, sampling, on_text or (lambda _: None))
        at_limit = len(tokens) == sampling.max_new_tokens and not text.is_stopped
        return Answer(
            text=text.text.strip(),
            token_ids=tuple(tokens),
            finish_reason="length" if at_limit else "stop",
            prompt_tokens=length,
            num_images=turn.num_images,
            prefill_s=first - begin,
            decode_s=time.perf_counter() - first,
        )

    def _decode(
        self,
        logits: NDArray[np.float32],
        state: DecoderState,
        sampling: SamplingParams,
        emit: Callable[[str], None],
    ) -> tuple[AnswerText, list[int]]:
        """Generate the answer, handing out its text as it becomes certain."""
        text = AnswerText(self.tokenizer.stream(), sampling.stop)
        tokens: list[int] = []
        for token in generate_tokens(
            self.decoder,
            state,
            logits,
            embed=self._embed_token,
            eos_token_id=self.eos_token_id,
            sampling=sampling,
        ):
            tokens.append(token)
            emit(text.push(token))
            if text.is_stopped:
                break
        emit(text.finish())
        return text, tokens

    def _check_length(self, ids: Sequence[int], max_new_tokens: int) -> int:
        """Return the prompt's positions, or say why the request cannot fit."""
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
        turn: UserTurn,
        state: DecoderState,
        length: int,
        progress: Progress | None,
    ) -> NDArray[np.float32]:
        """Feed the prompt in chunks; returns the logits after it."""
        pieces = embed_segments(
            split_segments(ids), embed=self.embed, image_embeds=self._encode(turn)
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

    def _encode(self, turn: UserTurn) -> Iterator[NDArray[np.float32]]:
        # a question without images does not load the vision stage
        if turn.num_images:
            yield from encode_images(
                turn.images,
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
