"""Engines of the LLaVA series and of text-only Jamba, built and audited: rotary positions, newlines, one or two key/value heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from longllava_trt.core.errors import ExportError
from longllava_trt.export.bundle import export_bundle
from longllava_trt.export.engine import cached_attention
from longllava_trt.export.engine.build import BuildOptions, build_engines
from longllava_trt.export.engine.profiles import EngineLimits
from longllava_trt.plugins_trt.registry import TensorRT
from longllava_trt.reference.synthetic.checkpoint import write_checkpoint
from tests.models.llava.gold import DATA

pytestmark = [pytest.mark.trt, pytest.mark.usefixtures("traced_before", "tensorrt")]

LIMITS = EngineLimits(max_context=97, chunk=16, vision_batch=3)
OPTIONS = BuildOptions(flavour="auto", limits=LIMITS)


@pytest.fixture(scope="module")
def library_of_one_head(tensorrt: TensorRT) -> Path:
    """A library for models whose heads share no key/value head."""
    from longllava_trt.plugins_trt.library.build import build_library

    return build_library(
        archs=[80], dtypes=["bf16"], weight_formats=["none"], heads=((16, 1),)
    ).path


def test_tiles_and_grouped_heads(plugin_library: Path, tmp_path: Path) -> None:
    export_bundle(DATA / "llava-1.6", tmp_path / "bundle", dtype="bfloat16")
    record = build_engines(tmp_path / "bundle", OPTIONS, plugins=plugin_library).record
    decoder, projector = record.stages["decoder"], record.stages["projector"]
    assert decoder.plugins == {"CachedAttention": 3}
    assert [t.name for t in projector.outputs] == ["image_embeds", "image_newline"]
    steps = decoder.kernels["decode"].kernels
    # the caches alone have their length, and queries are rotated and turned by one kernel
    assert sum(kernel.kind == "custom_layer" for kernel in steps) == 3
    assert decoder.kernels["decode"].launches <= 3 * 12 + 4


def test_a_linear_projector_and_as_many_key_value_heads(
    library_of_one_head: Path, tmp_path: Path
) -> None:
    export_bundle(DATA / "llava-1", tmp_path / "bundle", dtype="bfloat16")
    record = build_engines(tmp_path / "bundle", OPTIONS, plugins=library_of_one_head).record
    assert record.stages["decoder"].plugins == {"CachedAttention": 3}


def test_text_alone(plugin_library: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", preset="jamba-tiny")
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", dtype="bfloat16")
    options = BuildOptions(flavour="auto", limits=LIMITS, stages=("embed", "decoder"))
    record = build_engines(tmp_path / "bundle", options, plugins=plugin_library).record
    assert list(record.stages) == ["embed", "decoder"]
    assert record.stages["decoder"].plugins["CachedAttention"] >= 1


def test_queries_that_are_neither_turned_nor_rotated_are_refused(
    plugin_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(DATA / "llava-1.6", tmp_path / "bundle", dtype="bfloat16", stages=("decoder",))
    monkeypatch.setattr(cached_attention, "_rotates", lambda _: False)
    options = BuildOptions(flavour="auto", limits=LIMITS, stages=("decoder",))
    with pytest.raises(ExportError, match="queries and results must be transposed"):
        build_engines(tmp_path / "bundle", options, plugins=plugin_library)
