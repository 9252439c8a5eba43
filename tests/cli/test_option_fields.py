"""The command line takes defaults, choices and types from the dataclasses, and refuses what Python refuses."""

from __future__ import annotations

import ast
import importlib
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from longllava_trt.cli import asking, bench, build, build_parser, export, plan
from longllava_trt.cli.option_fields import FieldOptions, read_fields
from longllava_trt.core.errors import InputError
from longllava_trt.runtime.inputs.media import MediaOptions
from longllava_trt.runtime.options import RunOptions
from longllava_trt.runtime.sampling import SamplingParams

CLI = Path(build.__file__).parent
OPTIONS: dict[str, tuple[FieldOptions, str, str]] = {
    "RunOptions": (asking.RUN, "longllava_trt.runtime.options", "RunOptions"),
    "MediaOptions": (asking.MEDIA, "longllava_trt.runtime.inputs.media", "MediaOptions"),
    "SamplingParams": (asking.SAMPLING, "longllava_trt.runtime.sampling", "SamplingParams"),
    "BuildOptions": (build.BUILD, "longllava_trt.export.engine.build", "BuildOptions"),
    "EngineLimits": (build.LIMITS, "longllava_trt.export.engine.profiles", "EngineLimits"),
    "ExportOptions": (export.EXPORT, "longllava_trt.export.options", "ExportOptions"),
    "PlanRequest": (plan.PLAN, "longllava_trt.planning.estimate", "PlanRequest"),
    "BenchSettings": (bench.BENCH, "longllava_trt.bench.settings", "BenchSettings"),
}


OTHER_CONCEPTS = {
    "asking.py: image",
    "validate.py: image",
    "validate.py: kernels",
    "validate.py: seed",
    "synth.py: seed",
}
"""Flags that no dataclass has, under a name that another verb's does: which kernels to compare, whose seed."""


def default_of(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


@pytest.mark.parametrize(("options", "module", "name"), OPTIONS.values(), ids=OPTIONS)
def test_what_is_read_from_the_source_is_what_the_dataclass_has(
    options: FieldOptions, module: str, name: str
) -> None:
    kind = getattr(importlib.import_module(module), name)
    hints = get_type_hints(kind)
    assert list(options.fields) == [field.name for field in fields(kind)]
    build_parser()
    for field in fields(kind):
        found = options.fields[field.name]
        if found.choices is not None:
            assert found.choices == get_args(hints[field.name])
        if field.name in options._places:
            assert found.default == default_of(field)


def test_a_verb_leaves_nothing_to_chance() -> None:
    args = build_parser().parse_args(["run", "bundle", "-p", "?"])
    assert asking.chosen_run_options(args) == RunOptions()
    assert asking.chosen_media(args) == MediaOptions()
    assert asking.chosen_sampling(args) == SamplingParams()


@pytest.mark.parametrize("given", ["fast", "onnx", "bodies"])
def test_kernels_have_their_present_name_under_an_old_one_too(given: str, cli: Any) -> None:
    args = build_parser().parse_args(["run", "bundle", "-p", "?", "--kernels", given])
    assert asking.chosen_run_options(args) == RunOptions(kernels=given)  # type: ignore[arg-type]
    assert args.kernels in asking.KERNELS
    assert "{fast,onnx}" in cli("run", "--help").out


def test_no_flag_writes_a_default_that_a_dataclass_has() -> None:
    """A literal default beside a flag is allowed only where no dataclass of options has that flag."""
    build_parser()
    taken = {dest for options, _, _ in OPTIONS.values() for dest in options._places.values()}
    twice = []
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] not in {
                "add_argument",
                "add",
            }:
                continue
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            dests = {str(word).lstrip("-").replace("-", "_") for word in words}
            written = [k for k in node.keywords if k.arg == "default"]
            if written and dests & taken:
                twice.append(f"{path.name}: {', '.join(sorted(dests))}")
    assert set(twice) == OTHER_CONCEPTS


WRONG: dict[str, tuple[list[str], Any]] = {
    "run-chunk": (["run", "b", "-p", "?", "--chunk", "0"], lambda: RunOptions(chunk_size=0)),
    "run-backend": (
        ["run", "b", "-p", "?", "--backend", "x"],
        lambda: RunOptions(backend="x"),  # type: ignore[arg-type]
    ),
    "run-temperature": (
        ["run", "b", "-p", "?", "--temperature", "-1"],
        lambda: SamplingParams(temperature=-1),
    ),
    "run-frames": (["run", "b", "-p", "?", "--frames", "0"], lambda: MediaOptions(max_frames=0)),
}


@pytest.mark.parametrize(("argv", "make"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_refused_in_python_and_on_the_command_line(
    argv: list[str], make: Any, cli: Any
) -> None:
    with pytest.raises(InputError):
        make()
    assert cli(*argv).code == 2


def test_percent_signs_and_computed_defaults_do_no_harm() -> None:
    read = read_fields("longllava_trt.export.engine.build", "BuildOptions")
    assert read["limits"].default is None
    assert read["stages"].default == ("vision", "projector", "embed", "decoder")
