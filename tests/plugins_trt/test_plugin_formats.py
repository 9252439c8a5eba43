"""The forms agree with the specification, and are written for C++ as they are."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from longllava_trt.plugins_trt.launch_plans import cached_attention as attention_launch
from longllava_trt.plugins_trt.launch_plans import mixers as launch
from longllava_trt.plugins_trt.launch_plans import sparse_moe as sparse_moe_launch
from longllava_trt.plugins_trt.library.codegen import KernelImage, write_sources
from longllava_trt.plugins_trt.plugin_formats import FORMS, Axis, Form, parse_axis
from longllava_trt.plugins_trt.spec import OPERATORS


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        (1, Axis(None, offset=1)),
        ("hidden", Axis("hidden")),
        ("2*intermediate", Axis("intermediate", scale=2)),
        ("d_conv-1", Axis("d_conv", offset=-1)),
        ("hidden/128", Axis("hidden", divisor=128)),
    ],
)
def test_axes_are_parsed(text: str | int, axis: Axis) -> None:
    assert parse_axis(text) == axis


def test_every_axis_of_the_specification_can_be_parsed() -> None:
    for spec in OPERATORS:
        for value in (*spec.inputs, *spec.optional_inputs, *spec.outputs):
            for axis in value.axes:
                parse_axis(axis)


@pytest.mark.parametrize("spec", OPERATORS, ids=lambda spec: spec.op_type)
def test_a_form_for_every_operator_has_its_names_in_its_order(spec: object) -> None:
    from longllava_trt.plugins_trt.spec import OperatorSpec

    assert isinstance(spec, OperatorSpec)
    forms = [form for form in FORMS if form.op_type == spec.op_type]
    assert forms
    names = tuple(value.name for value in (*spec.inputs, *spec.optional_inputs))
    for form in forms:
        given = tuple(value.name for value in form.inputs)
        assert given in (spec.input_names, names)
        assert tuple(value.name for value in form.outputs) == spec.output_names


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.op_type}-{form.variant}")
def test_every_output_axis_is_some_inputs(form: Form) -> None:
    known = {parse_axis(axis) for value in form.inputs for axis in value.axes}
    assert {parse_axis(axis) for value in form.outputs for axis in value.axes} <= known


def _images(*archs: int) -> list[KernelImage]:
    return [
        KernelImage(
            name="scan_step_bf16",
            symbol="scan_step",
            arch=arch,
            threads=32,
            shared_bytes=arch,
            is_arch_specific=arch >= 90,
        )
        for arch in archs
    ]


def test_ptx_goes_in_where_newer_gpus_can_translate_it(tmp_path: Path) -> None:
    for archs, files in (
        ((80, 90), ["80.cubin", "80.ptx", "90.cubin"]),
        ((86, 89), ["86.cubin", "86.ptx", "89.cubin"]),
        ((90, 120), ["90.cubin", "120.cubin"]),
    ):
        write_sources(tmp_path, _images(*archs), heads=[(128, 4)], digest="0")
        text = (tmp_path / "images.S").read_text(encoding="utf-8")
        assert re.findall(r'incbin "scan_step_bf16.sm_(.*)"', text) == files


def test_constants_are_those_of_the_plans(tmp_path: Path) -> None:
    write_sources(tmp_path, _images(80), heads=[(64, 4), (128, 4)], digest="0")
    text = (tmp_path / "generated.h").read_text(encoding="utf-8")
    constants = dict(re.findall(r"constexpr int64_t k(\w+) = (\d+);", text))
    assert constants["StepTokens"] == str(launch.STEP_TOKENS)
    assert constants["MoeDecodeTokens"] == str(sparse_moe_launch.DECODE_TOKENS)
    assert constants["MoeMaxExperts"] == str(sparse_moe_launch.MAX_EXPERTS)
    tile = sparse_moe_launch.TILES["grouped_128"]
    sizes = f"{tile.rows}, {tile.gate_up_columns}, {tile.down_columns}"
    assert f"kMoeGrouped128{{{sizes}}}" in text
    assert constants["AttentionMaxSequences"] == str(attention_launch.MAX_SEQUENCES)
    tiles = attention_launch.TILES[120]
    sizes = f"{tiles.chunk.block_queries}, {tiles.decode.block_keys}, {tiles.decode.programs}"
    assert f"kAttentionTile16{{{sizes}, {tiles.decode.max_rows}}}" in text
    assert "kAttentionHeads[] = {{64, 4}, {128, 4}}" in text


def test_grids_of_attention_may_not_depend_on_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host launches what was compiled for each: it must not need to know which."""
    tiles = attention_launch.TILES[90]
    odd = replace(tiles, decode=replace(tiles.decode, block_keys=128))
    monkeypatch.setitem(attention_launch.TILES, 90, odd)
    with pytest.raises(AssertionError, match="grids of attention"):
        write_sources(tmp_path, _images(80), heads=[(128, 4)], digest="0")
