"""manifest.json survives a round trip and notices every change to a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longllava_trt.core.errors import ManifestError
from longllava_trt.core.manifest import Manifest, QuantisationError, record_files


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    return copy


def test_saved_manifest_loads_as_it_was(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    manifest.save(bundle)
    assert Manifest.load(bundle) == manifest
    assert list(manifest.stages) == ["vision", "projector", "embed", "decoder"]


def test_errors_of_quantisation_survive_and_old_manifests_have_none(bundle: Path) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    error = {"layer": 3, "matrix": "up", "relative_rms": 0.1, "max_abs": 0.25}
    path.write_text(json.dumps(raw | {"moe_quant": "w4a16", "quantisation_errors": [error]}))
    manifest = Manifest.load(bundle)
    assert manifest.quantisation_errors == (QuantisationError(**error),)  # type: ignore[arg-type]
    manifest.save(bundle)
    assert Manifest.load(bundle) == manifest
    del raw["moe_quant"], raw["quantisation_errors"]
    path.write_text(json.dumps(raw))
    old = Manifest.load(bundle)
    assert (old.moe_quant, old.quantisation_errors) == ("none", ())


def test_an_untouched_bundle_has_no_differences(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    assert manifest.differences(bundle) == []
    assert manifest.files == record_files(bundle)


def test_every_changed_or_missing_file_is_listed(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    (bundle / "embed.onnx").unlink()
    (bundle / "config.json").write_text("{}")
    graph = bundle / "decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    found = manifest.differences(bundle)
    assert [line.split(":")[0] for line in found] == ["config.json", "embed.onnx", "decoder.onnx"]
    assert "it is missing" in found[1]
    assert "sha256" in found[2]


def test_large_files_can_be_compared_by_length_alone(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    shard = next((bundle / "weights").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert manifest.differences(bundle, hash_up_to_bytes=1_000_000) == []
    assert len(manifest.differences(bundle)) == 1


@pytest.mark.parametrize("damage", ["absent", "cut-off", "no-field", "list", "future"])
def test_a_damaged_manifest_is_explained(bundle: Path, damage: str) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    if damage == "absent":
        path.unlink()
    elif damage == "cut-off":
        path.write_text(path.read_text()[:100])
    elif damage == "no-field":
        del raw["stages"]
        path.write_text(json.dumps(raw))
    elif damage == "list":
        path.write_text("[]")
    else:
        path.write_text(json.dumps(raw | {"format_version": 99}))
    message = {"absent": "not a bundle", "future": "must be 1, got 99"}.get(damage, "damaged")
    with pytest.raises(ManifestError, match=message):
        Manifest.load(bundle)
