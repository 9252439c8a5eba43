"""The plan: memory, arithmetic and time of a model on a GPU, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longllava_trt.core.engine_record import EngineRecord
from longllava_trt.core.errors import InputError
from longllava_trt.core.weight_formats import MOE_QUANTS, MoeQuant
from longllava_trt.models.image_layout import ImageLayout, PatchGrid, image_layout
from longllava_trt.models.registry import family_of, trained_context
from longllava_trt.models.spec import ModelSpec
from longllava_trt.planning.flops import StageFlops, count_flops, decoder_flops
from longllava_trt.planning.gpus import Gpu
from longllava_trt.planning.memory import (
    WeightBytes,
    activation_bytes,
    count_weights,
    kv_bytes_per_token,
    recurrent_bytes,
)

__all__ = ["DeviceMemory", "EngineMemory", "Plan", "PlanRequest", "make_plan"]

_DEVICE_RESERVE = 2**30
"""Driver context, TensorRT's own objects and fragmentation: kept free, not predicted."""
_LOADER_BYTES = 2**30
"""Host memory that loading may take: libraries, read buffers, one tensor being cast."""
_IMAGES = 1000
_IMAGES_IN_FLIGHT = 8
_IMAGE_BYTES = 3 * 12_000_000
"""A decoded photograph of 12 megapixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes that existing engines take besides weights, from `engine.json`."""

    scratch: int
    """Bytes of all stages, each in its largest profile."""
    capacity: int
    """Positions that keys and values have room for, used or not."""

    @classmethod
    def of(cls, record: EngineRecord) -> EngineMemory:
        """Read it from a record.

        Raises:
            InputError: If the engines have no decoder, or do not say what they work in.
        """
        decoder = record.stages.get("decoder")
        if decoder is None or not all(stage.kernels for stage in record.stages.values()):
            raise InputError(
                "plan: engines must have a decoder, and the memory that each stage works in, got "
                f"{', '.join(n for n, s in record.stages.items() if s.kernels) or 'none'}; build them again"
            )
        caches = [t.shape[2] for t in decoder.inputs if t.name.endswith((".key", ".value"))]
        return cls(
            scratch=sum(
                max(found.activation_bytes for found in stage.kernels.values())
                for stage in record.stages.values()
            ),
            capacity=min((int(size) for size in caches), default=0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A model and its use."""

    images: int | None = None
    """By default 1000; none for a text model."""
    text_tokens: int = 64
    """Positions of prompt and answer besides images."""
    dtype: str = "bfloat16"
    moe_quant: MoeQuant = "none"
    chunk: int = 4096
    """Positions of one decoder call during prefill."""
    vision_batch: int = 16
    max_context: int | None = None
    """Positions allowed; by default as many as the model was trained for."""
    image_size: tuple[int, int] | None = None
    """Width and height of each image in pixels; by default the vision tower's own."""
    engines: EngineMemory | None = None
    """Existing engines; by default their needs are estimated."""

    def __post_init__(self) -> None:
        least = {"images": 0, "text_tokens": 1, "chunk": 1, "vision_batch": 1, "max_context": 1}
        for name, floor in least.items():
            value = getattr(self, name)
            if value is not None and value < floor:
                raise InputError(f"plan: {name} must be at least {floor}, got {value}")
        if self.image_size is not None and min(self.image_size) < 1:
            raise InputError(f"plan: image_size must be positive, got {self.image_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Bytes on the GPU."""

    weights: int
    kv_cache: int
    states: int
    """Conv and recurrent states, double-buffered."""
    activations: int
    """Memory that every stage works in, a chunk or a batch in its widest layer; for existing engines, TensorRT's numbers."""
    reserve: int = _DEVICE_RESERVE

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.kv_cache + self.states + self.activations + self.reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Memory, arithmetic and time of a request."""

    gpu: Gpu
    request: PlanRequest
    tokens: int
    """Positions of the prompt and its answer."""
    weights: WeightBytes
    device: DeviceMemory
    host_bytes: int
    """Host memory allowed for loading and for images in flight; flat in the number of images."""
    disk_bytes: int
    """Bytes of the bundle with weights; without quantisation they are links to the checkpoint."""
    positions_per_image: int
    kv_bytes_per_position: int
    kv_bytes_per_image: int
    flops: StageFlops
    prefill_s: float
    """Seconds at the GPU's published peaks: a bound, not a forecast."""
    decode_tokens_per_s: float
    """As above, at the end of the prompt."""
    max_images: int
    """Largest number of images that fit on the GPU and into the trained context; negative if the
    weights alone do not fit."""
    problems: tuple[str, ...]
    """Reasons why it cannot be run; empty if it can."""
    suggestion: str | None
    """Nearest request that can be run."""

    @property
    def fits(self) -> bool:
        """Whether the request can be run."""
        return not self.problems


def make_plan(config: ModelSpec, gpu: Gpu, request: PlanRequest | None = None) -> Plan:
    """Plan a request.

    Args:
        config: The model.
        gpu: Where it is to run.
        request: What is to be run; by default 1000 images in bfloat16.

    Raises:
        InputError: If the request has a dtype or a format that is not known.
    """
    request = request or PlanRequest()
    if request.images is None:
        request = replace(request, images=0 if config.vision is None else _IMAGES)
    plan = _estimate(config, gpu, request)
    if plan.fits:
        return plan
    return replace(plan, suggestion=_suggest(config, gpu, request))


def _estimate(config: ModelSpec, gpu: Gpu, request: PlanRequest) -> Plan:
    decoder = config.decoder
    weights = count_weights(config, dtype=request.dtype, moe_quant=request.moe_quant)
    layout = _image_layout(config, request)
    per_image = layout.num_positions + family_of(config).positions_around_image
    images = request.images or 0
    tokens = images * per_image + request.text_tokens
    kv_per_token = kv_bytes_per_token(decoder, dtype=request.dtype)
    states = 2 * recurrent_bytes(decoder, dtype=request.dtype)
    engines = request.engines
    device = DeviceMemory(
        weights=weights.total,
        kv_cache=(engines.capacity if engines else tokens) * kv_per_token,
        states=states,
        activations=engines.scratch
        if engines
        else activation_bytes(
            config, dtype=request.dtype, chunk=request.chunk, vision_batch=request.vision_batch
        ),
    )
    flops = count_flops(config, views=images * layout.num_views, tokens=tokens)
    step, attention = decoder_flops(decoder, tokens=1, past=tokens)
    read = weights.read_per_token + tokens * kv_per_token + states
    free = gpu.memory_bytes - (device.total - device.kv_cache)
    room = free // kv_per_token
    if engines:
        # they have room for all positions or do not fit at all
        room = engines.capacity if room >= engines.capacity else 0
    context = request.max_context or trained_context(config)
    positions = min(room, context) - request.text_tokens
    passes = -(-tokens // request.chunk)
    return Plan(
        gpu=gpu,
        request=request,
        tokens=tokens,
        weights=weights,
        device=device,
        host_bytes=_LOADER_BYTES + _IMAGES_IN_FLIGHT * _IMAGE_BYTES,
        disk_bytes=weights.total,
        kv_bytes_per_position=kv_per_token,
        kv_bytes_per_image=per_image * kv_per_token,
        flops=flops,
        # every chunk reads all weights once
        prefill_s=max(flops.total / gpu.flops, passes * weights.total / gpu.bandwidth),
        decode_tokens_per_s=1 / max((step + attention) / gpu.flops, read / gpu.bandwidth),
        positions_per_image=per_image,
        # a text model takes none
        max_images=positions // per_image if per_image else 0,
        problems=tuple(_problems(gpu, request, device, tokens, context)),
        suggestion=None,
    )


def _image_layout(config: ModelSpec, request: PlanRequest) -> ImageLayout:
    """Return what one image becomes; nothing for a text model."""
    if config.vision is None or config.connector is None:
        if request.images:
            raise InputError(
                f"plan: this model takes text alone, got {request.images} images; give --images 0"
            )
        return ImageLayout(num_views=0, num_positions=0)
    patches = PatchGrid.of(config.vision, config.connector)
    size = request.image_size or (patches.image_size, patches.image_size)
    return image_layout(config.images, size, patches)


def _problems(
    gpu: Gpu, request: PlanRequest, device: DeviceMemory, tokens: int, context: int
) -> list[str]:
    problems = []
    if device.total > gpu.memory_bytes:
        problems.append(
            f"{_gb(device.total)} are needed ({_gb(device.weights)} of weights), {gpu.name} has "
            f"{_gb(gpu.memory_bytes)}"
        )
    if request.engines and tokens > request.engines.capacity:
        problems.append(
            f"{request.images} images are {tokens} positions, the engines have room for {request.engines.capacity}"
        )
    if tokens > context:
        problems.append(f"{request.images} images are {tokens} positions, the context is {context}")
    return problems


def _suggest(config: ModelSpec, gpu: Gpu, request: PlanRequest) -> str | None:
    """Return the nearest request that fits: first with smaller experts, then with fewer images."""
    smaller = MOE_QUANTS[MOE_QUANTS.index(request.moe_quant) :]
    has_experts = count_weights(config, dtype=request.dtype).experts > 0
    formats = smaller if has_experts else (request.moe_quant,)
    plans = [_estimate(config, gpu, replace(request, moe_quant=name)) for name in formats]
    for plan in plans:
        if plan.fits:
            size = _gb(plan.weights.total)
            return f"--moe-quant {plan.request.moe_quant}: {size} of weights, {plan.request.images} images fit"
    for plan in plans:
        if plan.max_images > 0:
            option = f"--moe-quant {plan.request.moe_quant} " * (plan.request.moe_quant != "none")
            return f"{option}--images {plan.max_images}: {_gb(plan.weights.total)} of weights"
    return None


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB"
