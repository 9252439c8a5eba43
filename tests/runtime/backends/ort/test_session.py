"""A session checks what it is given, and says why a bundle does not run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from longllava_trt.core.errors import ContractError, InputError, ManifestError
from longllava_trt.core.manifest import Manifest
from longllava_trt.export.bundle import export_bundle
from longllava_trt.models.contracts import layer_output_names
from longllava_trt.models.llava_jamba.presets import PRESETS
from longllava_trt.runtime.backends.ort.session import OnnxSession
from tests.export.stored_traces import stored_traces, traces_folder


def test_plain_onnxruntime_opens_the_files_by_path(tiny_bundle: Path) -> None:
    for record in Manifest.load(tiny_bundle).stages.values():
        session = onnxruntime.InferenceSession(
            tiny_bundle / record.file, providers=["CPUExecutionProvider"]
        )
        assert [i.name for i in session.get_inputs()] == [t.name for t in record.spec.inputs]
        assert [o.name for o in session.get_outputs()] == [t.name for t in record.spec.outputs]


def test_wrong_inputs_are_named(tiny_bundle: Path) -> None:
    session = OnnxSession(tiny_bundle, Manifest.load(tiny_bundle), "projector")
    with pytest.raises(
        ContractError,
        match=r"'image_features' must be \[2, 576, 32\] float32, got \[2, 576, 31\] float32",
    ):
        session.run({"image_features": np.zeros((2, 576, 31), np.float32)})
    with pytest.raises(ContractError, match=r"got \[2, 576, 32\] float64"):
        session.run({"image_features": np.zeros((2, 576, 32))})


def test_layer_outputs_can_be_asked_for(tiny_bundle: Path) -> None:
    names = layer_output_names("vision", PRESETS["tiny"])
    session = OnnxSession(tiny_bundle, Manifest.load(tiny_bundle), "vision", extra_outputs=names)
    outputs = session.run({"pixel_values": np.ones((1, 3, 336, 336), np.float32)})
    np.testing.assert_array_equal(outputs[names[-1]][:, 1:], outputs["image_features"])


def test_half_precision_bundles_say_how_to_run_on_a_cpu(
    tiny_checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with stored_traces(traces_folder(tmp_path_factory)):
        export_bundle(tiny_checkpoint, tmp_path / "half", dtype="float16", stages=["embed"])
    with pytest.raises(InputError, match=r"graphs are float16.*--dtype float32"):
        OnnxSession(tmp_path / "half", Manifest.load(tmp_path / "half"), "embed")


def test_a_missing_stage_is_named(
    tiny_checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with stored_traces(traces_folder(tmp_path_factory)):
        export_bundle(tiny_checkpoint, tmp_path / "part", stages=["embed"])
    with pytest.raises(ManifestError, match="stage 'vision' is not in it, only embed"):
        OnnxSession(tmp_path / "part", Manifest.load(tmp_path / "part"), "vision")


@pytest.mark.parametrize("damage", ["graph", "weights"])
def test_what_onnxruntime_refuses_is_one_error(
    tiny_bundle: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    if damage == "graph":
        (copy / "embed.onnx").write_bytes(b"\x00garbage")
    else:
        shutil.rmtree(copy / "weights")
    with pytest.raises(ManifestError, match=r"embed\.onnx: ONNX Runtime cannot load it"):
        OnnxSession(copy, Manifest.load(copy), "embed")
