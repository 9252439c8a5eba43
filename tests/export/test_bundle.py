"""A bundle holds the checkpoint's own bytes, appears whole or not at all, and writes no weight."""

from __future__ import annotations

import errno
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.export_at_scale import LIMITS, PARAMETERS, Figures, measure, missed
from longllava_trt.core.errors import CheckpointError, ExportError, InputError
from longllava_trt.core.manifest import Manifest
from longllava_trt.core.safetensors_header import read_tensor
from longllava_trt.export import bundle as bundle_module
from longllava_trt.export.bundle import export_bundle
from longllava_trt.export.trace import trace_stage
from longllava_trt.models.checkpoint import index_checkpoint
from longllava_trt.models.registry import load_model_spec
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from longllava_trt.runtime.backends.ort.session import OnnxSession

EMBED_ONLY = ("embed",)

pytestmark = pytest.mark.usefixtures("traced_before")


def external(init: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in init.external_data}


def test_every_initializer_points_at_its_tensor(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    config = load_model_spec(tiny_checkpoint)
    sources = index_checkpoint(tiny_checkpoint, config)
    seen = set()
    for record in Manifest.load(tiny_bundle).stages.values():
        model = onnx.load(tiny_bundle / record.file, load_external_data=False)
        for init in model.graph.initializer:
            if not init.external_data:
                assert len(init.raw_data) < 4096, f"{init.name} is a weight inside the graph"
                continue
            place = external(init)
            with (tiny_bundle / place["location"]).open("rb") as file:
                file.seek(int(place["offset"]))
                data = file.read(int(place["length"]))
            want = read_tensor(sources[init.name], tiny_checkpoint)
            assert data == want.tobytes()
            assert tuple(init.dims) == want.shape
            seen.add(init.name)
    last = config.require_vision().num_layers - 1
    unused = {n for n in sources if f"encoder.layers.{last}." in n or "post_layernorm" in n}
    assert seen == set(sources) - unused
    assert seen == set(Manifest.load(tiny_bundle).weights)


def test_weights_are_the_checkpoints_own_files(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "weights").iterdir():
        assert path.samefile(tiny_checkpoint / path.name)
        assert not path.is_symlink()


def test_new_bytes_are_counted_and_hold_no_weight(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = export_bundle(tiny_checkpoint, tmp_path / "out")
    own = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.stat().st_nlink == 1]
    assert report.new_bytes == sum(p.stat().st_size for p in own)
    weights = sum(p.stat().st_size for p in (tmp_path / "out/weights").iterdir())
    assert report.linked_bytes == weights
    # the tensors alone are 5 MB; graphs, manifest and tokenizer together stay far below
    assert report.new_bytes < 0.1 * weights


@pytest.mark.slow
def test_export_of_mini_copies_no_weight(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "mini", preset="mini", sparse=True)
    report = export_bundle(tmp_path / "mini", tmp_path / "out")
    assert report.linked_bytes > 800e6
    assert report.new_bytes < 1e6


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_a_cast_is_a_node_and_not_a_copy(tmp_path: Path, stored: str) -> None:
    checkpoint = tmp_path / "half"
    write_checkpoint(checkpoint, preset="tiny", dtype=stored)
    report = export_bundle(checkpoint, tmp_path / "out", dtype="float32", stages=EMBED_ONLY)
    assert report.new_bytes < 1e5
    manifest = Manifest.load(tmp_path / "out")
    (record,) = manifest.weights.values()
    assert (record.dtype, record.transform) == (stored, "cast")
    ids = np.array([[3, 1, 4]])
    embeds = OnnxSession(tmp_path / "out", manifest, "embed").run({"input_ids": ids})
    sources = index_checkpoint(checkpoint, load_model_spec(checkpoint))
    table = read_tensor(sources["model.embed_tokens.weight"], checkpoint)
    np.testing.assert_array_equal(embeds["inputs_embeds"][0], table[ids[0]].astype(np.float32))


def test_auto_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "half", preset="tiny", dtype="bfloat16")
    report = export_bundle(tmp_path / "half", tmp_path / "out", stages=EMBED_ONLY)
    assert report.dtype == "bfloat16"
    assert {w.transform for w in Manifest.load(tmp_path / "out").weights.values()} == {"none"}


@pytest.mark.parametrize("mode", ["symlink", "copy"])
def test_other_ways_to_place_weights_run_too(
    tiny_checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    out = tmp_path / "out"
    report = export_bundle(tiny_checkpoint, out, stages=EMBED_ONLY, weights=mode)
    weights = list((out / "weights").iterdir())
    assert all(path.is_symlink() == (mode == "symlink") for path in weights)
    assert (report.new_bytes > 1e6) == (mode == "copy")
    session = OnnxSession(out, Manifest.load(out), "embed")
    assert np.isfinite(session.run({"input_ids": np.array([[5]])})["inputs_embeds"]).all()


def test_without_hard_links_auto_falls_back_and_hardlink_explains(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export_bundle(tiny_checkpoint, tmp_path / "auto", stages=EMBED_ONLY)
    assert all(path.is_symlink() for path in (tmp_path / "auto/weights").iterdir())
    with pytest.raises(InputError, match=r"cross-device.*--weights copy"):
        export_bundle(tiny_checkpoint, tmp_path / "hard", stages=EMBED_ONLY, weights="hardlink")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["auto"]


def test_a_failed_export_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ExportError("embed: refused")

    monkeypatch.setattr(bundle_module, "check_stage", fail)
    with pytest.raises(ExportError):
        export_bundle(tiny_checkpoint, tmp_path / "out", stages=EMBED_ONLY)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_old_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(tiny_checkpoint, tmp_path / "out", stages=EMBED_ONLY)
    before = (tmp_path / "out/manifest.json").read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "check_stage", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(tiny_checkpoint, tmp_path / "out", stages=EMBED_ONLY, overwrite=True)
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_bad_options_are_refused_before_any_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype must be one of"):
        export_bundle(tiny_checkpoint, tmp_path / "out", dtype="int8")
    with pytest.raises(InputError, match=r"stages must be among .* got prefill"):
        export_bundle(tiny_checkpoint, tmp_path / "out", stages=["prefill"])
    assert not list(tmp_path.iterdir())


def test_a_ceiling_of_memory_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"embed: .* within 0\.01 GiB, but its peak was"):
        export_bundle(tiny_checkpoint, tmp_path / "out", stages=EMBED_ONLY, max_ram_gib=0.01)
    assert not list(tmp_path.iterdir())
    report = export_bundle(tiny_checkpoint, tmp_path / "out", stages=EMBED_ONLY, max_ram_gib=1000.0)
    assert 50e6 < report.peak_rss_bytes < 1000 * 2**30
    assert report.seconds > 0


@pytest.mark.slow
def test_export_of_the_9b_keeps_its_limits(tmp_path: Path) -> None:
    figures = measure("9b", tmp_path)
    # how long it takes says more about what else this machine does
    assert missed(replace(figures, seconds=0.0), PARAMETERS["9b"]) == []
    assert figures.linked_bytes > 19e9


@pytest.mark.parametrize("field", [*LIMITS, "parameters"])
def test_a_missed_limit_is_noticed(field: str) -> None:
    zeros = dict.fromkeys((f.name for f in fields(Figures)), 0)
    good = Figures(**{**zeros, "parameters": 5})
    assert missed(good, 5) == []
    (miss,) = missed(replace(good, **{field: LIMITS.get(field, 5) + 1}), 5)
    assert miss.startswith(field)


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt", preset="tiny")
    (tmp_path / "ckpt/tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        export_bundle(tmp_path / "ckpt", tmp_path / "out", stages=EMBED_ONLY)


def test_two_exports_write_the_same_graphs(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the traces that other tests made are of no use here
    monkeypatch.setattr(bundle_module, "trace_stage", trace_stage)
    export_bundle(tiny_checkpoint, tmp_path / "again")
    for path in tiny_bundle.glob("*.onnx"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
