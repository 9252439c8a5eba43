"""Every name of TensorRT that we call is in its bindings: of TensorRT-RTX, and of the full TensorRT.

The full TensorRT needs a GPU to be built with, but its Python bindings import without one, and without its libraries,
if something gives the few symbols that they are linked to. They are asked for in a process of their own.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from longllava_trt.plugins_trt.registry import TensorRT

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    [
        *(ROOT / "export/engine").glob("*.py"),
        *(ROOT / "runtime/backends/trt").glob("*.py"),
        ROOT / "plugins_trt/registry.py",
    ]
)
RTX_ALONE = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
"""Names that we ask of TensorRT-RTX, but not of the full TensorRT."""
MEMBERS = {
    "Builder": "create_network create_builder_config create_optimization_profile build_serialized_network",
    "IBuilderConfig": "clear_flag set_flag profiling_verbosity progress_monitor add_optimization_profile "
    "num_compute_capabilities set_compute_capability",
    "IOptimizationProfile": "set_shape",
    "OnnxParser": "set_flag parse",
    "INetworkDefinition": "num_layers get_layer num_inputs get_input num_outputs get_output",
    "ILayer": "type name metadata num_inputs get_input num_outputs get_output",
    "ITensor": "name shape dtype",
    "IAttentionInputLayer": "attention",
    "IAttention": "name get_input set_input causal_kind key_value_lengths decomposable",
    "IMatrixMultiplyLayer": "op1",
    "IShuffleLayer": "first_transpose second_transpose reshape_dims",
    "IPluginV3Layer": "plugin",
    "IPluginV3": "get_capability_interface",
    "IPluginRegistry": "load_library deregister_library",
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "get_device_memory_size_for_profile_v2 create_execution_context create_runtime_config",
    "IRuntimeConfig": "dynamic_shapes_kernel_specialization_strategy set_execution_context_allocation_strategy "
    "create_runtime_cache set_runtime_cache",
    "IRuntimeCache": "serialize deserialize",
    "IExecutionContext": "set_optimization_profile_async set_device_memory set_input_shape set_tensor_address "
    "execute_async_v3 is_stream_capturable",
}
"""Names that we use of TensorRT's objects, by class."""
PROBE = """\
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
missing = []
for name in json.loads(sys.argv[2]):
    found = module
    for word in name.split("."):
        found = getattr(found, word, None)
    if found is None:
        missing.append(name)
words = (name.split(".") for name in json.loads(sys.argv[2]) if name not in missing)
members = [(owner, member) for owner, *rest in words for member in rest]
texts = {f"{o}.{m}": getattr(getattr(module, o), m).__doc__ or "" for o, m in members}
print(json.dumps([module.__version__, missing, texts]))
"""
LINKED_TO = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getPluginRegistry "
    "initLibNvInferPlugins getNvOnnxParserVersion"
).split()


def names() -> set[str]:
    """Return what the sources take from the module, and the members of its classes."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    of_module = set(re.findall(r"\b(?:trt|module)\.([A-Z]\w+(?:\.[A-Z]\w+)?)", text))
    members = {f"{owner}.{name}" for owner, listed in MEMBERS.items() for name in listed.split()}
    return of_module | members


Call = tuple[int, frozenset[str]]
"""Number of arguments given by their place, and the names of the others."""


def calls() -> dict[str, set[Call]]:
    """Return how the sources call each member that is a method, by its bare name."""
    listed = {name for words in MEMBERS.values() for name in words.split()}
    found: dict[str, set[Call]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if name in listed and not any(isinstance(a, ast.Starred) for a in node.args):
                    named = frozenset(k.arg for k in node.keywords if k.arg)
                    found.setdefault(name, set()).add((len(node.args), named))
    return found


def signatures(text: str, name: str) -> list[tuple[list[str], int]]:
    """Return the arguments of each overload in a docstring of pybind11, and how many must be given."""
    found = []
    for listed in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", text, re.MULTILINE):
        parts = [p for p in re.split(r", (?=\w+: )", listed) if p and not p.startswith("self")]
        given = [part.partition(":")[0] for part in parts]
        found.append((given, sum(" = " not in part for part in parts)))
    return found


def wrong_calls(texts: dict[str, str]) -> list[str]:
    """Return calls that no overload takes."""
    wrong = []
    for member, text in texts.items():
        name = member.partition(".")[2]
        known = signatures(text, name)
        for places, named in calls().get(name, set()) if known else ():
            fits = [
                own
                for own, least in known
                if least <= places + len(named) <= len(own) and named <= set(own[places:])
            ]
            if not fits:
                wrong.append(f"{member}({places} arguments, {sorted(named)}) of {known}")
    return wrong


def test_a_wrong_call_is_noticed() -> None:
    text = (
        "set_shape(self: x.Y, input: str, min: x.Dims, opt: x.Dims, max: x.Dims) -> None\n\nSets."
    )
    assert signatures(text, "set_shape") == [(["input", "min", "opt", "max"], 4)]
    assert wrong_calls({"IOptimizationProfile.set_shape": text}) == []
    short = text.replace(", max: x.Dims", "")
    assert len(wrong_calls({"IOptimizationProfile.set_shape": short})) == 1


def test_members_are_named_where_they_are_used() -> None:
    """A member that the sources no longer use, or that is misspelt here, is noticed."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    listed = {name for words in MEMBERS.values() for name in words.split()}
    assert {name for name in listed if not re.search(rf"\.{name}\b", text)} == set()
    assert "LayerType.SHUFFLE" in names()


@pytest.mark.trt
def test_names_are_those_of_tensorrt_rtx(tensorrt: TensorRT) -> None:
    if tensorrt.flavour != "tensorrt-rtx":
        pytest.skip("names of TensorRT-RTX are unproven: the full TensorRT is installed instead")
    missing = set()
    for name in names():
        found = tensorrt.module
        for word in name.split("."):
            found = getattr(found, word, None)
        if found is None:
            missing.add(name)
    assert missing == set()


def test_names_are_those_of_the_full_tensorrt(tmp_path: Path) -> None:
    if find_spec("tensorrt_bindings") is None:
        pytest.skip(
            "names of the full TensorRT are unproven: tensorrt-cu13-bindings is not installed"
        )
    source = tmp_path / "stub.c"
    source.write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in LINKED_TO))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.11"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "stub.c"]
        subprocess.run(command, check=True, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "tensorrt_bindings", json.dumps(sorted(names() - RTX_ALONE))],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, missing, texts = json.loads(done.stdout)
    assert missing == [], version
    assert sum(bool(signatures(text, m.partition(".")[2])) for m, text in texts.items()) > 20
    assert wrong_calls(texts) == [], version
