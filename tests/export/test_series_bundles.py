"""Bundles of the LLaVA series and of text-only models in plain ONNX Runtime, against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longllava_trt.core.manifest import Manifest
from longllava_trt.export.bundle import export_bundle
from longllava_trt.export.trace import trace_stage
from longllava_trt.models.contracts import stage_specs
from longllava_trt.models.registry import find_preset
from longllava_trt.reference.cache import empty_cache
from longllava_trt.reference.checkpoint import load_model
from longllava_trt.reference.model import LongLLaVA
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint

LIMIT = 1e-5
CAPACITY = 40
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(
    scope="module",
    params=[
        ("llava-1-tiny", "original"),
        ("llava-1.5-tiny", "original"),
        ("llava-1.6-mistral-tiny", "huggingface"),
        ("jamba-tiny", "stacked"),
    ],
    ids="-".join,
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LongLLaVA, Path]:
    """The reference, and the bundle of the same checkpoint."""
    preset, checkpoint_format = request.param
    folder = tmp_path_factory.mktemp("series")
    write_checkpoint(folder / "model", preset=preset, checkpoint_format=checkpoint_format)
    export_bundle(folder / "model", folder / "bundle")
    return load_model(folder / "model"), folder / "bundle"


def run(bundle: Path, stage: str, feeds: Arrays) -> Arrays:
    """Run a stage with no kernels but ONNX Runtime's own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    file = bundle / Manifest.load(bundle).stages[stage].file
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def error(actual: NDArray[Any], expected: torch.Tensor) -> float:
    wanted = expected.numpy()
    return float(np.abs(actual - wanted).max() / np.abs(wanted).max())


@torch.no_grad()
def test_the_decoder_in_pieces_is_the_reference(exported: tuple[LongLLaVA, Path]) -> None:
    model, bundle = exported
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 500, (2, 23), generator=generator)
    embeds = model.embed(ids)
    expected = model.decode(embeds, empty_cache(model.config.decoder, batch=2))
    spec = stage_specs(model.config, "float32")["decoder"]
    sizes = {"batch": 2, "capacity": CAPACITY}
    state: Arrays = {
        t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], np.float32)
        for t in spec.inputs[2:]
    }
    for begin, end in ((0, 9), (9, 10), (10, 23)):
        past_len = np.full(2, begin, np.int64)
        feeds = {"inputs_embeds": embeds[:, begin:end].numpy(), "past_len": past_len, **state}
        found = run(bundle, "decoder", feeds)
        state = dict(zip(state, (found[t.name] for t in spec.outputs[1:]), strict=True))
    assert error(found["logits"], expected.logits) <= LIMIT
    for name, tensor in zip(state, (t for pair in expected.cache for t in pair), strict=True):
        held = state[name]
        # keys and values have room for more positions
        held = held[:, :, : tensor.shape[2]] if name.endswith(("key", "value")) else held
        assert error(held, tensor) <= LIMIT, name


@torch.no_grad()
def test_images_become_the_references_rows(exported: tuple[LongLLaVA, Path]) -> None:
    model, bundle = exported
    if model.config.vision is None:
        assert set(Manifest.load(bundle).stages) == {"embed", "decoder"}
        return
    size = model.config.vision.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(6))
    features = run(bundle, "vision", {"pixel_values": pixels.numpy()})["image_features"]
    rows = run(bundle, "projector", {"image_features": features})["image_embeds"]
    expected = model.project(model.encode_images(pixels))
    assert rows.shape == (2, model.config.num_image_tokens, model.config.decoder.hidden_size)
    assert error(rows, expected) <= LIMIT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_angles_are_float32_in_every_dtype(dtype: str) -> None:
    spec = find_preset("llava-1.5-tiny")
    graph = trace_stage(spec, stage_specs(spec, dtype)["decoder"], dtype=dtype).graph
    kinds = {
        node.op_type: str(node.inputs[0].dtype)
        for node in graph
        if node.op_type in ("Cos", "Sin") and node.inputs[0] is not None
    }
    assert kinds == {"Cos": "FLOAT", "Sin": "FLOAT"}
    rotations = [node for node in graph if node.op_type == "RotaryEmbedding"]
    assert len(rotations) == 2 * spec.decoder.num_layers
    (tables,) = {node.inputs[1] for node in rotations}
    assert tables is not None
    assert str(tables.dtype) == dtype.upper()
