"""A bundle on our kernels. Weights go to the device stage by stage; the graphs are not read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch

from longllava_trt.core.errors import ConfigError, ManifestError
from longllava_trt.core.manifest import Manifest, WeightRecord
from longllava_trt.core.stage_spec import PAST_PREFIX
from longllava_trt.models.registry import load_bundle_spec
from longllava_trt.models.spec import ExpertsSpec, ModelSpec
from longllava_trt.runtime.backends.base import (
    GPU_CHUNK,
    GPU_VISION_BATCH,
    BackendLimits,
    BackendName,
    ScanName,
)
from longllava_trt.runtime.backends.kernels.decoder import KernelsDecoder
from longllava_trt.runtime.backends.kernels.decoder_model import DecoderModel
from longllava_trt.runtime.backends.kernels.device import DeviceStream, torch_dtype
from longllava_trt.runtime.backends.kernels.mamba_scan import load_mamba_scan
from longllava_trt.runtime.backends.kernels.requirements import (
    MemoryNeed,
    check_machine,
    check_memory,
    is_interpreted,
)
from longllava_trt.runtime.backends.kernels.rotary import rotary_table_bytes
from longllava_trt.runtime.backends.kernels.stages import KernelsStage, make_stage
from longllava_trt.runtime.backends.kernels.state import KernelsState
from longllava_trt.runtime.backends.kernels.weight_plan import (
    FusedWeight,
    plan_decoder,
    plan_stage,
    total_bytes,
)
from longllava_trt.runtime.backends.kernels.weights import Weights, load_fused
from longllava_trt.runtime.inputs.prefetch import prefetch

__all__ = ["KernelsBackend"]

Item = TypeVar("Item")
ReadWeights: TypeAlias = Callable[
    [Path, Mapping[str, WeightRecord], tuple[FusedWeight, ...], DeviceStream], Weights
]


class KernelsBackend:
    """PyTorch and Triton on this machine's GPU, or on the CPU if TRITON_INTERPRET=1 is set.

    Args:
        bundle: Folder.
        manifest: Its manifest.
        max_context: Positions that a sequence gets memory for at once; on a CPU, memory is taken
            when it is needed.
        chunk_size: Positions fed at a time; None for what `limits` prefers.
        scan: Selective scan of a sequence's first chunk, as for `RunOptions`.
        read_weights: Called instead of `load_fused`; benchmarks without a checkpoint need it.

    Raises:
        MissingDependencyError: If this machine lacks PyTorch, Triton, a GPU, a GPU that supports the
            bundle's dtype, or the package that ``scan`` names.
        ManifestError: If the bundle does not say how its model is built.
        InputError: If the GPU's memory is too small.
    """

    name: BackendName = "kernels"
    materialises_scores = False

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        *,
        max_context: int,
        chunk_size: int | None,
        scan: ScanName = "ours",
        read_weights: ReadWeights = load_fused,
    ) -> None:
        check_machine(manifest.dtype)
        self._bundle, self._manifest, self._max_context = bundle, manifest, max_context
        self._read_weights = read_weights
        self._config = _config_of(bundle)
        self._device = torch.device("cpu" if is_interpreted() else "cuda")
        self._first_scan = load_mamba_scan(self._device) if scan == "mamba-ssm" else None
        self._plans = {
            stage: plan_stage(stage, self._config, manifest.dtype)
            for stage in self._config.stages
            if stage != "decoder"
        } | {"decoder": plan_decoder(self._config, manifest.dtype, manifest.moe_quant)}
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            check_memory(self._need(chunk_size or self.limits.preferred_chunk), free=free)
        self._decoder: KernelsDecoder | None = None
        self._vision_stream: DeviceStream | None = None

    @property
    def limits(self) -> BackendLimits:
        """No limits: only memory limits this backend, and it was checked at the start."""
        if self._device.type == "cpu":
            return BackendLimits()
        return BackendLimits(preferred_chunk=GPU_CHUNK, preferred_vision_batch=GPU_VISION_BATCH)

    def load_stage(self, stage: str) -> KernelsStage:
        """Load a stage and its weights. Vision and projector share a stream, not the decoder's."""
        record = self._manifest.stage(stage)
        if stage in {"vision", "projector"}:
            self._vision_stream = self._vision_stream or DeviceStream(self._device)
            stream = self._vision_stream
        else:
            stream = DeviceStream(self._device)
        weights = self._read_weights(
            self._bundle, self._manifest.weights, self._plans[stage], stream
        )
        return make_stage(record.spec, self._config, weights, stream)

    def load_decoder(self) -> KernelsDecoder:
        """Load the decoder and its weights, once."""
        if self._decoder is None:
            stream = DeviceStream(self._device)
            weights = self._read_weights(
                self._bundle, self._manifest.weights, self._plans["decoder"], stream
            )
            self._decoder = KernelsDecoder(
                DecoderModel.of(self._config.decoder, weights),
                self._manifest.stage("decoder").spec,
                stream,
                first_scan=self._first_scan,
            )
        return self._decoder

    def new_state(self, *, capacity: int) -> KernelsState:
        """Return a new state on the device, with room for the longest context."""
        if self._device.type == "cuda":
            capacity = max(capacity, self._max_context)
        return self.load_decoder().new_state(capacity=capacity)

    def overlap(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items; on a GPU the next is made at the same time, on a stream of its own."""
        return prefetch(items) if self._device.type == "cuda" else items

    def _need(self, chunk_size: int) -> MemoryNeed:
        decoder, manifest = self._config.decoder, self._manifest
        sizes = {"batch": 1, "capacity": self._max_context}
        caches = sum(
            math.prod(sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape)
            * torch_dtype(spec.dtype).itemsize
            for spec in manifest.stage("decoder").spec.inputs
            if spec.name.startswith(PAST_PREFIX)
        )
        # values that the feed-forward of one position holds at once
        widths = [
            f.intermediate_size * (f.top_k if isinstance(f, ExpertsSpec) else 1)
            for f in (layer.feed_forward for layer in decoder.layers)
        ]
        row = 3 * max(widths) + 6 * decoder.hidden_size
        return MemoryNeed(
            weights=sum(map(total_bytes, self._plans.values())),
            caches=caches,
            work=chunk_size * row * torch_dtype(manifest.dtype).itemsize
            + rotary_table_bytes(decoder, self._max_context),
            max_context=self._max_context,
            is_quantised=manifest.moe_quant != "none" or not decoder.moe_layers,
        )


def _config_of(bundle: Path) -> ModelSpec:
    try:
        return load_bundle_spec(bundle)
    except ConfigError as err:
        raise ManifestError(
            f"{bundle}: does not say how its model is built ({err}); export it again"
        ) from err
