"""Load a checkpoint into the reference model, strictly."""

from __future__ import annotations

from pathlib import Path

import torch

from longllava_trt.core.safetensors_header import read_tensor
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.registry import load_model_spec
from longllava_trt.reference.model import LongLLaVA

__all__ = ["load_model"]


def load_model(
    checkpoint: Path, *, dtype: torch.dtype = torch.float32, vision_tower: Path | None = None
) -> LongLLaVA:
    """Load the whole model on the CPU, ready for inference.

    Args:
        checkpoint: Folder with config.json and safetensors, under any names that its family knows.
        dtype: Dtype to compute in; tensors are cast one at a time.
        vision_tower: Folder of a CLIP checkpoint with the vision tower, used instead of the copy in
            the checkpoint (spec 3.3).

    Raises:
        ConfigError: If config.json has a value that is not supported.
        CheckpointError: Lists every tensor that is missing, extra or of a wrong shape.
    """
    config = load_model_spec(checkpoint, vision_tower=vision_tower)
    sources = index_checkpoint(checkpoint, config, vision_tower=vision_tower)
    tensors = {}
    for name, source in sources.items():
        # torch takes no bfloat16 from NumPy, so bytes are passed as integers of the same width
        array = read_tensor(source, checkpoint)
        carrier = array.view(f"i{array.dtype.itemsize}").copy()
        stored = getattr(torch, source.dtype)
        tensors[name] = torch.from_numpy(carrier).view(stored).to(dtype)
    return LongLLaVA.from_tensors(config, tensors)
