"""Sizes that an engine is built for: dims that are fixed, and profiles over dims that vary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from longllava_trt.core.engine_record import ShapeRange
from longllava_trt.core.errors import InputError
from longllava_trt.core.stage_spec import StageSpec, TensorSpec
from longllava_trt.models.registry import trained_context
from longllava_trt.models.spec import ModelSpec
from longllava_trt.plugins_trt.launch_plans.cached_attention import MAX_SEQUENCES

__all__ = ["EngineLimits", "engine_spec", "stage_profiles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """How large the inputs of engines may get."""

    max_context: int | None = None
    """Positions that the KV cache has room for; fixed in the engine. By default as many as the model was trained for."""
    chunk: int = 4096
    """Tokens that the decoder takes in one call while it reads a prompt."""
    vision_batch: int = 16
    """Images in one call of the vision tower and the projector."""
    sequences: int = 1
    """Sequences that the decoder takes a step of in one call."""

    def __post_init__(self) -> None:
        """Refuse what no engine could be built for."""
        # with a batch of 1 and exactly one query TensorRT moves every weight in every call (TensorRT-RTX 1.7)
        if self.chunk < 2:
            raise InputError(f"chunk: must be at least 2 tokens, got {self.chunk}")
        if self.max_context is not None and self.max_context < self.chunk:
            raise InputError(
                f"max-context: must be at least the chunk of {self.chunk} tokens, got {self.max_context}; "
                "raise --max-context or lower --chunk"
            )
        if self.vision_batch < 1:
            raise InputError(f"vision-batch: must be at least 1 image, got {self.vision_batch}")
        if not 1 <= self.sequences <= MAX_SEQUENCES:
            raise InputError(f"sequences: must be 1 to {MAX_SEQUENCES}, got {self.sequences}")

    def of_model(self, spec: ModelSpec) -> EngineLimits:
        """Return the limits with the model's own context in the place of None, and no longer chunks."""
        if self.max_context is not None:
            return self
        context = trained_context(spec)
        return replace(self, max_context=context, chunk=min(self.chunk, context))

    def fixed(self, stage: str) -> dict[str, int]:
        """Return sizes of a stage's dims that do not vary, by name."""
        assert self.max_context is not None, "Bug: `of_model` comes first"
        varies = stage == "decoder" and self.sequences > 1
        return {"capacity": self.max_context} | ({} if varies else {"batch": 1})

    def ranges(self, stage: str) -> dict[str, dict[str, tuple[int, int, int]]]:
        """Return least, typical and largest size of the dims that vary, by profile."""
        if stage in {"vision", "projector"}:
            return {"images": {"num_images": (1, self.vision_batch, self.vision_batch)}}
        chunk = {"seq_len": (1, max(self.chunk // 2, 1), self.chunk)}
        if stage == "embed":
            return {"chunk": chunk}
        # with exactly one token of one sequence TensorRT would move every weight
        tokens = (1, 1, 2) if self.sequences == 1 else (1, 1, 1)
        step = {"batch": (1, 1, self.sequences), "seq_len": tokens}
        return {"chunk": {"batch": (1, 1, 1), **chunk}, "decode": step}


def engine_spec(spec: StageSpec, limits: EngineLimits) -> StageSpec:
    """Return a stage's contract with the fixed dims as numbers."""
    fixed = limits.fixed(spec.name)

    def fix(tensor: TensorSpec) -> TensorSpec:
        shape = tuple(fixed.get(d, d) if isinstance(d, str) else d for d in tensor.shape)
        return TensorSpec(tensor.name, shape, tensor.dtype)

    return StageSpec(spec.name, tuple(map(fix, spec.inputs)), tuple(map(fix, spec.outputs)))


def stage_profiles(spec: StageSpec, limits: EngineLimits) -> Mapping[str, Mapping[str, ShapeRange]]:
    """Return the shapes that each profile allows for each input that varies.

    Args:
        spec: From `engine_spec`.
        limits: The same.
    """
    return {
        name: {
            tensor.name: ShapeRange(*(_shape(tensor, dims, end) for end in range(3)))
            for tensor in spec.inputs
            if any(isinstance(dim, str) for dim in tensor.shape)
        }
        for name, dims in limits.ranges(spec.name).items()
    }


def _shape(
    tensor: TensorSpec, dims: Mapping[str, tuple[int, int, int]], end: int
) -> tuple[int, ...]:
    return tuple(dims[d][end] if isinstance(d, str) else d for d in tensor.shape)
