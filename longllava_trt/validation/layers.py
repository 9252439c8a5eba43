"""Level layer: the residual stream and the carried state after each layer, running freely.

Errors may grow from layer to layer here, so the first row that fails names the layer to look at. The prompt is fed in
chunks to both sides, so that what is carried between calls counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longllava_trt.core.parity import FLOAT32_MODEL, ParityRow, compare
from longllava_trt.core.stage_spec import TensorSpec, present_name
from longllava_trt.models.contracts import layer_output_names
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.runtime.backends.ort.session import OnnxSession
from longllava_trt.validation.parity_case import ParityCase, array_of, state_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from longllava_trt.runtime.backends.ort.kernels import Kernels

__all__ = ["LayerCase", "layer_rows"]

_CHUNKS = (33, 1, 2, 29)
"""A chunk, a decode step, fewer positions than the convolution is wide, another chunk."""
_SPARE_ROOM = 3
_NUM_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCase:
    """Inputs, and what the reference makes of them."""

    pixel_values: NDArray[np.float32] | None
    """None for a text model."""
    inputs_embeds: NDArray[np.float32]
    hidden_states: dict[str, NDArray[Any]]
    """After each layer of both stages, by the names they have in the graphs."""
    state: dict[str, NDArray[Any]]
    """After the last chunk, by input name."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: LongLLaVA, *, seed: int) -> LayerCase:
        """Run the reference on random pixels and random tokens."""
        generator = torch.Generator().manual_seed(seed)
        config = model.config
        pixels = None
        if config.vision is not None:
            side = config.vision.image_size
            pixels = torch.randn(_NUM_IMAGES, 3, side, side, generator=generator)
        ids = torch.randint(config.decoder.vocab_size, (1, sum(_CHUNKS)), generator=generator)
        embeds, cache = model.embed(ids), empty_cache(config.decoder)
        chunks = []
        for piece in embeds.split(list(_CHUNKS), dim=1):
            output = model.decode(piece, cache)
            cache = output.cache
            chunks.append(output.hidden_states)
        residuals = {"decoder": [torch.cat(pieces, dim=1) for pieces in zip(*chunks, strict=True)]}
        if pixels is not None:
            residuals = {"vision": model.vision(pixels, model.ops)[1], **residuals}
        return cls(
            pixel_values=None if pixels is None else array_of(pixels),
            inputs_embeds=array_of(embeds),
            hidden_states={
                name: array_of(hidden)
                for stage, after in residuals.items()
                for name, hidden in zip(layer_output_names(stage, config), after, strict=True)
            },
            state=state_arrays(cache, config.decoder),
        )


def layer_rows(case: LayerCase, subject: ParityCase, kernels: Kernels) -> Iterator[ParityRow]:
    """Compare every layer of the vision tower and of the decoder."""
    actual = _run_vision(case, subject, kernels)
    hidden, state = _run_decoder(case, subject, kernels)
    actual |= hidden
    for name, want in case.hidden_states.items():
        yield compare(f"layer.{kernels}.{name}", actual[name], want, FLOAT32_MODEL)
    for name, want in case.state.items():
        got = state[name]
        # keys and values have room for more positions than were fed
        fed = got[:, :, : want.shape[2]]
        yield compare(f"layer.{kernels}.decoder.{present_name(name)}", fed, want, FLOAT32_MODEL)


def _run_vision(case: LayerCase, subject: ParityCase, kernels: Kernels) -> dict[str, NDArray[Any]]:
    if case.pixel_values is None:
        return {}
    names = layer_output_names("vision", subject.reference.config)
    session = OnnxSession(
        subject.bundle, subject.manifest, "vision", kernels=kernels, extra_outputs=names
    )
    outputs = session.run({"pixel_values": case.pixel_values})
    return {name: outputs[name] for name in names}


def _run_decoder(
    case: LayerCase, subject: ParityCase, kernels: Kernels
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the residual stream after each layer, over all chunks, and the carried state after the last."""
    names = layer_output_names("decoder", subject.reference.config)
    session = OnnxSession(
        subject.bundle, subject.manifest, "decoder", kernels=kernels, extra_outputs=names
    )
    state = {t.name: _zeros(t, sum(_CHUNKS) + _SPARE_ROOM) for t in session.spec.inputs[2:]}
    chunks: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    past_len = 0
    for length in _CHUNKS:
        piece = case.inputs_embeds[:, past_len : past_len + length]
        outputs = session.run(
            {"inputs_embeds": piece, "past_len": np.array([past_len], dtype=np.int64), **state}
        )
        state = {name: outputs[present_name(name)] for name in state}
        for name in names:
            chunks[name].append(outputs[name])
        past_len += length
    return {name: np.concatenate(pieces, axis=1) for name, pieces in chunks.items()}, state


def _zeros(spec: TensorSpec, capacity: int) -> NDArray[Any]:
    sizes = {"batch": 1, "capacity": capacity}
    return np.zeros([sizes[d] if isinstance(d, str) else d for d in spec.shape], dtype=spec.dtype)
