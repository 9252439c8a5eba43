"""Quantised experts: bits where they belong, whatever the blocks; and a graph that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from longllava_trt.core.errors import CheckpointError, InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.safetensors_header import read_header
from longllava_trt.core.weight_formats import MoeQuant
from longllava_trt.export.bundle import export_bundle
from longllava_trt.export.quantisation import expert_writer
from longllava_trt.export.quantisation.expert_files import check_format, expert_records
from longllava_trt.export.quantisation.expert_writer import quantise_layer
from longllava_trt.inspection import inspect_bundle, inspect_checkpoint
from longllava_trt.models.llava_jamba.config import model_from_keys
from longllava_trt.models.spec import ModelSpec
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.reference.synthetic.presets import preset_config

LAYER = 3
PREFIX = f"model.layers.{LAYER}.moe.experts."
Matrices = dict[str, np.ndarray]


def model(intermediate: int = 160, hidden: int = 224, experts: int = 3) -> ModelSpec:
    tiny = preset_config("tiny", None)
    keys = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_experts": experts,
        "num_experts_per_tok": min(2, experts),
    }
    return model_from_keys({**tiny.source, **keys}, tiny.require_vision())


def expert_sizes(config: ModelSpec) -> tuple[int, int, int]:
    """Return the number of experts, and their intermediate and hidden size."""
    experts = config.decoder.moe_layers[LAYER]
    return experts.num_experts, experts.intermediate_size, config.decoder.hidden_size


def layer_weights(config: ModelSpec) -> Matrices:
    """Rows of very different sizes, so that a scale of the wrong row is noticed; some rows of zeros."""
    rng = np.random.default_rng(3)
    weights = {}
    count, inner, hidden = expert_sizes(config)
    for expert in range(count):
        for kind, shape in (
            ("gate", (inner, hidden)),
            ("up", (inner, hidden)),
            ("down", (hidden, inner)),
        ):
            matrix = rng.standard_normal(shape, dtype=np.float32)
            matrix *= np.float32(2.0) ** rng.integers(-6, 7, (shape[0], 1)).astype(np.float32)
            matrix[5] = 0
            weights[f"{PREFIX}{expert}.{kind}_proj.weight"] = matrix
    return weights


def write(
    folder: Path, config: ModelSpec, weights: Matrices, quant: MoeQuant
) -> tuple[Matrices, Any]:
    """Quantise a layer; returns what another reader finds in the file, by the operator's names."""
    save_file(weights, folder / "model.safetensors")
    made = quantise_layer(
        folder / "out/layer.safetensors",
        LAYER,
        config=config,
        sources=read_header(folder / "model.safetensors"),
        checkpoint=folder,
        quant=quant,
    )
    found = load_file(folder / "out/layer.safetensors")
    return {name.removeprefix(PREFIX): array for name, array in found.items()}, made


def oracle(matrix: np.ndarray, quant: str) -> tuple[np.ndarray, np.ndarray]:
    """Round row by row and group by group, in float64; returns values and scales."""
    wide = matrix.astype(np.float64)
    top, group = (127, wide.shape[1]) if quant == "w8a16" else (7, 128)
    values, scales = np.empty_like(wide), []
    for begin in range(0, wide.shape[1], group):
        part = wide[:, begin : begin + group]
        # as stored, so that a tie is one here too
        scale = (np.abs(part).max(1) / top).astype(np.float32).astype(np.float64)
        scale[scale == 0] = 1
        values[:, begin : begin + group] = np.rint(part / scale[:, None]) * scale[:, None]
        scales.append(scale)
    return values, np.stack(scales, axis=1)


def dequantised(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Read codes as the specification says, in float64, independently of the library's own reader."""
    if codes.dtype == np.int8:
        return codes.astype(np.float64) * scales[..., None]
    columns = np.empty((*codes.shape[:-1], 2 * codes.shape[-1]))
    columns[..., ::2], columns[..., 1::2] = codes % 16, codes // 16
    group = np.arange(columns.shape[-1]) // 128
    return (columns - 8) * scales.astype(np.float64)[..., group]


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_a_layer_is_quantised_as_row_by_row_in_float64(tmp_path: Path, quant: MoeQuant) -> None:
    config = model()
    weights = layer_weights(config)
    stored, made = write(tmp_path, config, weights, quant)
    lost: dict[str, list[np.ndarray]] = {"gate": [], "up": [], "down": []}
    for expert in range(expert_sizes(config)[0]):
        gate_up = dequantised(stored["gate_up"][expert], stored["gate_up_scales"][expert])
        found = {
            "gate": gate_up[:160],
            "up": gate_up[160:],
            "down": dequantised(stored["down"][expert], stored["down_scales"][expert]),
        }
        for kind, values in found.items():
            matrix = weights[f"{PREFIX}{expert}.{kind}_proj.weight"]
            want, scales = oracle(matrix, quant)
            # float32 may round a tie to the other side
            assert (np.abs(values - want) > 1e-6 * scales.max()).mean() < 1e-3
            lost[kind] += [values - matrix, matrix.astype(np.float64)]
    for error in made.errors:
        losses, sizes = np.stack(lost[error.matrix][::2]), np.stack(lost[error.matrix][1::2])
        want_rms = np.sqrt(np.square(losses).sum() / np.square(sizes).sum())
        assert error.relative_rms == pytest.approx(want_rms, rel=1e-4)
        assert error.max_abs == pytest.approx(np.abs(losses).max() / np.abs(sizes).max(), rel=1e-4)
        assert error.layer == LAYER
    assert [error.matrix for error in made.errors] == ["gate", "up", "down"]
    assert made.bytes_read == sum(w.nbytes for w in weights.values())


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_records_point_at_what_is_stored(tmp_path: Path, quant: MoeQuant) -> None:
    config = model()
    stored, _ = write(tmp_path, config, layer_weights(config), quant)
    records = expert_records(config, LAYER, quant)
    data = (tmp_path / "out/layer.safetensors").read_bytes()
    assert {name.removeprefix(PREFIX) for name in records} == set(stored)
    for name, record in records.items():
        want = stored[name.removeprefix(PREFIX)]
        assert (record.shape, record.dtype) == (want.shape, str(want.dtype))
        assert data[record.offset : record.offset + record.nbytes] == want.tobytes()
    assert records[f"{PREFIX}gate_up"].offset % 64 == 0


def test_int8_takes_any_size(tmp_path: Path) -> None:
    config = model(intermediate=37, hidden=52, experts=2)
    stored, made = write(tmp_path, config, layer_weights(config), "w8a16")
    assert stored["gate_up"].shape == (2, 74, 52)
    assert all(0 < error.relative_rms < 0.01 for error in made.errors)


@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_blocks_and_threads_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: MoeQuant
) -> None:
    config = model()
    weights = layer_weights(config)
    _, made = write(tmp_path, config, weights, quant)
    whole = (tmp_path / "out/layer.safetensors").read_bytes()
    monkeypatch.setattr(expert_writer, "_BLOCK_ELEMENTS", 7 * config.decoder.hidden_size)
    monkeypatch.setattr(expert_writer, "_MAX_THREADS", 1)
    _, again = write(tmp_path, config, weights, quant)
    assert (tmp_path / "out/layer.safetensors").read_bytes() == whole
    assert again.sha256 == made.sha256


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_quantised_from_its_own_values(tmp_path: Path, stored: Any) -> None:
    config = model()
    weights = {name: w.astype(stored) for name, w in layer_weights(config).items()}
    half, _ = write(tmp_path, config, weights, "w8a16")
    wide, _ = write(
        tmp_path, config, {n: w.astype(np.float32) for n, w in weights.items()}, "w8a16"
    )
    for name, array in half.items():
        np.testing.assert_array_equal(array, wide[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("quant", ["w8a16", "w4a16"])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, quant: MoeQuant, bad: float) -> None:
    config = model()
    weights = layer_weights(config)
    name = f"{PREFIX}1.down_proj.weight"
    weights[name][100, 7] = bad
    with pytest.raises(CheckpointError, match=rf"{name}: must be finite"):
        write(tmp_path, config, weights, quant)
    assert not (tmp_path / "out/layer.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "quant", "message"),
    [
        (model(intermediate=48), "w4a16", r"multiples of 32, got 224 and 48; use w8a16"),
        (model(experts=1), "w8a16", "this model has none"),
    ],
    ids=["int4-of-odd-size", "dense"],
)
def test_what_cannot_be_stored_is_refused(config: ModelSpec, quant: MoeQuant, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_format(config, quant)


@pytest.mark.parametrize(
    ("quant", "word", "dtype"),
    [("w8a16", "int8", TensorProto.INT8), ("w4a16", "int4", TensorProto.UINT8)],
    ids=["w8a16", "w4a16"],
)
def test_the_graph_reads_codes_and_scales(
    tiny_checkpoint: Path, tmp_path: Path, quick_export: Callable[..., Any], quant: MoeQuant,
    word: str, dtype: int,
) -> None:  # fmt: skip
    report = quick_export(tiny_checkpoint, tmp_path / "out", stages=["decoder"], moe_quant=quant)
    model = onnx.load(tmp_path / "out/decoder.onnx", load_external_data=False)
    types = {init.name: init.data_type for init in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "SparseMoE"]
    for layer, node in zip((1, 3, 5, 7), nodes, strict=True):
        prefix = f"model.layers.{layer}.moe.experts."
        names = [prefix + n for n in ("gate_up", "down", "gate_up_scales", "down_scales")]
        assert list(node.input[2:]) == names
        assert [types[name] for name in names] == [dtype, dtype, *[TensorProto.FLOAT] * 2]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"top_k": 2, "weight_format": word.encode()}
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.moe_quant == quant
    assert manifest.quantisation_errors == report.quantisation_errors
    assert len(report.quantisation_errors) == 4 * 3
    # the dense layers keep the checkpoint's
    kept = {n.split(".")[2] for n in manifest.weights if ".moe.experts.0." in n}
    assert kept == {"0", "2", "4", "6"}
    own = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.stat().st_nlink == 1]
    assert report.new_bytes == sum(p.stat().st_size for p in own)
    assert manifest.differences(tmp_path / "out") == []
    # quantised or not, a model has as many parameters
    counted = inspect_checkpoint(tiny_checkpoint).parameters
    found = inspect_bundle(tmp_path / "out").parameters
    assert (found.decoder_active, found.vision) == (counted.decoder_active - 512 * 64, 0)
    assert found.decoder == counted.decoder - 512 * 64, "embeddings are another stage's"


@pytest.mark.slow
@pytest.mark.usefixtures("traced_before")
def test_a_half_precision_graph_takes_them_as_they_are(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "half", preset="tiny", dtype="bfloat16")
    export_bundle(tmp_path / "half", tmp_path / "out", stages=["decoder"], moe_quant="w4a16")
    weights = Manifest.load(tmp_path / "out").weights
    assert {w.transform for w in weights.values()} == {"none", "w4a16"}
    assert weights["model.layers.1.moe.experts.down_scales"].dtype == "float32"


def test_without_the_decoder_nothing_is_quantised(
    tiny_checkpoint: Path, tmp_path: Path, quick_export: Callable[..., Any]
) -> None:
    report = quick_export(tiny_checkpoint, tmp_path / "out", stages=["embed"], moe_quant="w8a16")
    assert report.moe_quant == "none"
    assert Manifest.load(tmp_path / "out").moe_quant == "none"
