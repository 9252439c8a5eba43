"""Refusals of the host, and their texts: bad tensors, bad attributes, a driver that fails, a GPU it has no code for."""

from __future__ import annotations

import ctypes.util
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from longllava_trt.plugins_trt.library.build import PluginLibrary
from longllava_trt.plugins_trt.library.codegen import PLUGIN_VERSION

_SCAN = {"batch": 1, "seq_len": 200, "d_inner": 64, "d_state": 16}
_CONV = {"batch": 1, "seq_len": 200, "d_inner": 64, "d_conv": 4}
_ATTENTION = {"batch": 2, "seq_len": 1, "heads": 8, "kv_heads": 2, "head_dim": 128}
_ATTENTION |= {"capacity": 300}
_MAMBA = _SCAN | {"dt_rank": 4, "dt_b_c": 36}
_MOE = {"num_tokens": 5, "hidden": 64, "intermediate": 96, "num_experts": 4}


def _refusal(host: Any, call: Any, **options: Any) -> str:
    said = host(call, **options)
    assert said["status"] != 0
    assert said["launches"] == []
    return str(said["error"])


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"type": 3}, "'u' must be float32, float16 or bfloat16, the same throughout; got int8"),
        (3, {"type": 1}, "'B' must be .* got fp16 beside bf16"),
        (8, {"type": 2}, "'state' must be float32; got bf16"),
        (8, {"type": 77}, "'state' must be float32; got another dtype"),
        (1, {"dims": [200, 64]}, "'dt' must have 3 axes, got 2"),
        (1, {"dims": [1, 201, 64]}, "'dt' axis 1 must be seq_len = 200 .* got 201"),
        (5, {"dims": [63]}, "'D' axis 0 must be d_inner = 64 .* got 63"),
        (0, {"dims": [1, 0, 64]}, "'u' axis 1 must be .* at least 1, got 0"),
        (0, {"dims": [1, 2**63 - 1, 64]}, "'u' axis 1 must be 1 to 134217728, got 922337203685477"),
        (0, {"dims": [2**27] * 3}, "'u' must have at most 281474976710656 elements, got more"),
        (0, {"dims": [1, -1, 64]}, "'u' axis 1 must be at least 1, got -1"),
        (2, {"data": 8}, "'A_log' must be a multiple of 16 and not null"),
        (6, {"data": None}, "'z' must be a multiple of 16 and not null"),
    ],
)
def test_bad_tensors_are_refused(
    host: Any, host_call: Callable[..., Any], place: int, change: dict[str, Any], message: str
) -> None:
    call = host_call("SelectiveScan", "bf16", _SCAN)
    call.inputs[place] |= change
    error = _refusal(host, call)
    assert re.search(f"^SelectiveScan: .*{message}", error), error


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (3, {"type": 2}, "'past_len' must be int32; got bf16"),
        (0, {"type": 5}, "'q' must be float32, float16 or bfloat16, the same .*; got int32"),
        (1, {"type": 0}, "'key_cache' must be .* got fp32 beside bf16"),
        (2, {"dims": [2, 2, 301, 128]}, "'value_cache' axis 2 must be capacity = 300 .* got 301"),
        (1, {"dims": [2, 300, 128]}, "'key_cache' must have 4 axes, got 3"),
        (0, {"dims": [2, 1, -1, 128]}, "'q' axis 2 must be at least 1, got -1"),
        (3, {"dims": [3]}, "'past_len' axis 0 must be batch = 2 .* got 3"),
        (3, {"data": 4}, "'past_len' must be a multiple of 16 and not null"),
    ],
)
def test_bad_tensors_of_attention_are_refused(
    host: Any, host_call: Callable[..., Any], place: int, change: dict[str, Any], message: str
) -> None:
    call = host_call("CachedAttention", "bf16", _ATTENTION)
    call.inputs[place] |= change
    error = _refusal(host, call)
    assert re.search(f"^CachedAttention: .*{message}", error), error


def test_attention_must_not_write_what_it_reads(host: Any, host_call: Callable[..., Any]) -> None:
    for place, name in enumerate(("q", "key_cache", "value_cache")):
        call = host_call("CachedAttention", "bf16", _ATTENTION)
        call.outputs[0]["data"] = call.inputs[place]["data"]
        error = _refusal(host, call)
        assert f"'y' must not lie in the memory of input '{name}'" in error
    call = host_call("CachedAttention", "bf16", _ATTENTION)
    call.workspace = None
    assert "'workspace' must be a multiple of 16" in _refusal(host, call)


def test_outputs_are_checked_as_well(host: Any, host_call: Callable[..., Any]) -> None:
    call = host_call("SelectiveScan", "bf16", _SCAN)
    call.outputs[1]["type"] = 2
    assert "'state_out' must be float32" in _refusal(host, call)
    call = host_call("SelectiveScan", "bf16", _SCAN)
    del call.outputs[1]
    assert "expected 9 inputs and 2 outputs, got 9 and 1" in _refusal(host, call)
    call = host_call("SelectiveScan", "bf16", {**_SCAN, "seq_len": 4096})
    call.workspace = None
    assert "'workspace' must be a multiple of 16" in _refusal(host, call)


def test_state_may_be_updated_in_place_by_a_step_alone(
    host: Any, host_call: Callable[..., Any]
) -> None:
    for seq_len, allowed in ((1, True), (2, True), (3, False)):
        call = host_call("SelectiveScan", "bf16", {**_SCAN, "seq_len": seq_len})
        call.outputs[1]["data"] = call.inputs[8]["data"]
        assert (host(call)["status"] == 0) is allowed
        # halfway is never right
        call.outputs[1]["data"] += 256
        assert "'state_out' must not lie in the memory of input 'state'" in _refusal(host, call)
        fused = host_call(
            "MambaScan", "bf16", {**_MAMBA, "seq_len": seq_len}, attributes="eps=1e-6"
        )
        fused.outputs[1]["data"] = fused.inputs[10]["data"]
        assert (host(fused)["status"] == 0) is allowed
    call = host_call("CausalConvWithState", "bf16", _CONV, attributes="activation=silu")
    call.outputs[1]["data"] = call.inputs[3]["data"]
    assert "'present_state' must not lie in the memory of" in _refusal(host, call)


@pytest.mark.parametrize(
    ("op_type", "attributes", "message"),
    [
        ("SelectiveScan", "chunk=4", "unknown attribute 'chunk'; it has: none"),
        ("SparseMoE", "top_k=2 experts=4", "unknown attribute 'experts'; it has: top_k, weight"),
        ("SparseMoE", "", "attribute 'top_k' is missing"),
        ("SparseMoE", "top_k=many", "attribute 'top_k' must be an integer"),
        ("SparseMoE", "top_k", "attributes must be name=value, got 'top_k'"),
        ("SparseMoE", "top_k=0", "top_k must be at least 1, got 0"),
        ("SparseMoE", "top_k=5", "top_k <= num_experts <= 64, got top_k 5 and 4 experts"),
        ("SparseMoE", "top_k=2 weight_format=int2", "must be none, int8 or int4, got 'int2'"),
        ("SparseMoE", "top_k=2 weight_format=int8", "expected 6 inputs and 1 outputs, got 4 and"),
        ("CachedAttention", "scale=1", "unknown attribute 'scale'; it has: none"),
        ("CausalConvWithState", "", "attribute 'activation' is missing"),
        ("CausalConvWithState", "activation=none", "activation must be 'silu', got 'none'"),
        ("CausalConvWithState", "activation=silu ndim=2", "ndim must be 1, got 2"),
        ("CausalConvWithState", "activation=silu channels_last=2", "must be 0 or 1, got 2"),
        ("MambaScan", "", "attribute 'eps' is missing"),
        ("MambaScan", "eps=1", "attribute 'eps' must be a number with a point"),
        ("MambaScan", "eps=small", "attribute 'eps' must be a number with a point"),
        ("MambaScan", "eps=1.e", "attribute 'eps' must be a number with a point"),
        ("MambaScan", "eps=-1.0", "eps must be at least 0, got -1"),
        ("SparseMoE", "top_k=2.5", "attribute 'top_k' must be an integer"),
        ("Softmax", "", "operator 'Softmax': this library has SelectiveScan, SparseMoE, Causal"),
    ],
)
def test_bad_attributes_are_refused(
    host: Any, host_call: Callable[..., Any], op_type: str, attributes: str, message: str
) -> None:
    sizes = _MAMBA | _CONV | _MOE
    sizes |= {} if op_type != "CachedAttention" else _ATTENTION
    variant = "none" if op_type == "SparseMoE" else ""
    known = "SelectiveScan" if op_type == "Softmax" else op_type
    call = host_call(known, "bf16", sizes, variant=variant, attributes=attributes)
    call.op_type = op_type
    assert message in _refusal(host, call)


@pytest.mark.parametrize(
    ("op_type", "variant", "attributes", "sizes", "message"),
    [
        ("SelectiveScan", "", "", {"d_state": 8}, "compiled for d_state 16, got 8"),
        ("CausalConvWithState", "", "activation=silu", {"d_conv": 3}, "for d_conv 4, got 3"),
        (
            "CausalConvWithState",
            "channels_last",
            "activation=silu channels_last=1",
            {"d_inner": 72},
            "d_inner to be a multiple of 16, got 72",
        ),
        (
            "CausalConvWithState",
            "channels_last",
            "activation=silu channels_last=1",
            {"input_row": 192},
            "must have d_inner = 64 channels, or twice as many, got 192",
        ),
        ("MambaScan", "", "eps=1e-6", {"d_state": 8}, "compiled for d_state 16, got 8"),
        ("MambaScan", "", "eps=1e-6", {"dt_b_c": 35}, "2 * d_state = 36 columns, got 35"),
        ("SparseMoE", "none", "top_k=2", {"hidden": 72}, "hidden must be a multiple of 16"),
        (
            "SparseMoE",
            "int4",
            "top_k=2 weight_format=int4",
            {"intermediate": 80},
            "(int4): intermediate must be a multiple of 32, got 80; use int8",
        ),
        ("SparseMoE", "none", "top_k=2", {"num_experts": 65}, "got top_k 2 and 65 experts"),
        ("CachedAttention", "", "", {"batch": 17}, "for up to 16 sequences, got 17; run fewer"),
        (
            "CachedAttention",
            "",
            "",
            {"heads": 9},
            "heads must be a multiple of kv_heads, got 9 and 2",
        ),
        (
            "CachedAttention",
            "",
            "",
            {"head_dim": 64},
            "heads of 48x3, 128x4 (head_dim x heads that share a key/value head), got 64x4; rebuild",
        ),
        ("CachedAttention", "", "", {"heads": 4}, "got 128x2; rebuild"),
        ("SelectiveScan", "", "", {"batch": 65536}, "axis 1 of its grid must be 1 to 65535"),
    ],
)
def test_sizes_without_a_kernel_are_refused(
    host: Any,
    host_call: Callable[..., Any],
    op_type: str,
    variant: str,
    attributes: str,
    sizes: dict[str, int],
    message: str,
) -> None:
    common = _ATTENTION if op_type == "CachedAttention" else _MAMBA | _CONV | _MOE
    sizes = common | {"seq_len": 1, "input_row": 64} | sizes
    call = host_call(op_type, "bf16", sizes, variant=variant, attributes=attributes)
    assert message in _refusal(host, call)


_CALLS = ["cuCtxGetCurrent", "cuCtxGetDevice", "cuDeviceGetAttribute", "cuModuleLoadDataEx"]
_CALLS += ["cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel", "cuInit"]


@pytest.mark.parametrize("failing", _CALLS)
def test_what_the_driver_refuses_is_told_and_tried_again(
    fresh_host: Any, host_call: Callable[..., Any], failing: str
) -> None:
    call = host_call("SelectiveScan", "bf16", _SCAN)
    error = _refusal(fresh_host, call, failing=failing)
    assert f"{failing}: the CUDA driver returned CUDA_ERROR_ILLEGAL_ADDRESS (700)" in error
    assert ("; ptxas says no" in error) is (failing == "cuModuleLoadDataEx")
    said = fresh_host(call)
    assert said["status"] == 0, said["error"]


def test_a_gpu_gets_the_code_that_it_can_run(
    fresh_host: Any, host_call: Callable[..., Any]
) -> None:
    call = host_call("SelectiveScan", "bf16", _SCAN)
    # a library for sm_80: the same major runs its code, anything newer translates its PTX
    cases = {(8, 0): 1, (8, 6): 1, (8, 9): 1, (9, 0): 0, (12, 1): 0}
    for context, (arch, is_binary) in enumerate(cases.items(), start=1):
        said = fresh_host(call, arch=arch, context=context)
        assert said["status"] == 0, said["error"]
        assert {launch["is_binary"] for launch in said["launches"]} == {is_binary}
    error = _refusal(fresh_host, call, arch=(7, 5), context=99)
    assert "this GPU is sm_75, the library holds sm_80; build it for this GPU" in error
    assert "no current context" in _refusal(fresh_host, call, context=0)


def test_a_module_is_loaded_once_a_context(fresh_host: Any, host_call: Callable[..., Any]) -> None:
    call = host_call("SelectiveScan", "bf16", {**_SCAN, "seq_len": 1})
    loads = [
        fresh_host(call, context=context)["launches"][0]["module_loads"]
        for context in (1, 1, 2, 2, 1)
    ]
    assert loads == [1, 1, 2, 2, 2]


@pytest.mark.skipif(
    ctypes.util.find_library("cuda") is not None,
    reason="what is said without a driver is unproven: there is one",
)
def test_without_a_driver_it_says_so(driverless_host: Any, host_call: Callable[..., Any]) -> None:
    call = host_call("SelectiveScan", "bf16", _SCAN)
    error = _refusal(driverless_host, call)
    assert "expected libcuda.so.1, got" in error
    assert "NVIDIA's driver" in error


def test_only_the_interface_is_exported(plugin_library: PluginLibrary) -> None:
    command = ["nm", "--dynamic", "--defined-only", str(plugin_library.path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(line.split()[-1] for line in lines) == [
        "getCreators",
        "longllava_enqueue",
        "longllava_last_error",
        "longllava_plugins_version",
        "longllava_workspace_size",
        "setLoggerFinder",
    ]


def test_it_says_its_version_and_digest(plugin_library: PluginLibrary) -> None:
    library = ctypes.CDLL(str(plugin_library.path))
    library.longllava_plugins_version.restype = ctypes.c_char_p
    said = library.longllava_plugins_version().decode()
    assert said == f"{plugin_library.version} {plugin_library.digest}"
    assert plugin_library.version == PLUGIN_VERSION
