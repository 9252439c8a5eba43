"""The C++ host launches what Python plans: kernels, grids, threads, arguments, workspaces.

The expectation is made from the plans and from the kernels' own signatures; what was launched comes from a driver that
records. No GPU is needed, and none is used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from longllava_trt.plugins_trt.launch_plans.cached_attention import (
    MAX_MULTIPROCESSORS,
    AttentionShape,
    plan_cached_attention,
    tiles_of,
)
from longllava_trt.plugins_trt.launch_plans.mamba_scan import MambaScanShape, plan_mamba_scan
from longllava_trt.plugins_trt.launch_plans.mixers import plan_causal_conv, plan_selective_scan
from longllava_trt.plugins_trt.launch_plans.plan import Launch, Variant, Workspace
from longllava_trt.plugins_trt.launch_plans.sparse_moe import (
    MoeShape,
    plan_launches,
    plan_workspaces,
)
from longllava_trt.plugins_trt.library.codegen import KernelImage

pytest.importorskip("triton", reason="kernel signatures need Triton: longllava-trt[plugins]")

from longllava_trt.plugins_trt.kernels import (
    cached_attention_variants,
    sparse_moe_variants,
    variants,
)
from tests.plugins_trt.csrc.conftest import HEADS

Plan = tuple[list[Launch], list[Workspace]]
Images = dict[str, tuple[KernelImage, int]]


@functools.cache
def _variants(dtype: Any, weights: Any = "none") -> list[Variant]:
    known = variants.list_variants(dtype) + sparse_moe_variants.list_variants(dtype, weights)
    for head_dim, group in HEADS:
        known += cached_attention_variants.list_plugin_variants(
            dtype, arch=80, head_dim=head_dim, group=group
        )
    return known


def _variant(launch: Launch, known: list[Variant], outputs: str) -> Variant:
    """Return the one that fits, of experts' outputs in this dtype; of two, the one for aligned sizes."""
    fitting = {
        v.name: v
        for v in known
        if v.kernel.fn.__name__ == launch.kernel
        and v.blocks == launch.blocks
        and v.signature.get("expert_outputs", outputs) == outputs
        and all(launch.integers.get(name, 0) % 16 == 0 for name in v.aligned)
    }.values()
    *_, found = sorted(fitting, key=lambda v: len(v.aligned))
    return found


def _counts(known: list[Variant]) -> dict[str, int]:
    """Return each kernel's arguments, with the two that Triton adds."""
    return {
        v.kernel.fn.__name__: sum(t != "constexpr" for t in v.signature.values()) + 2 for v in known
    }


class _Expectation:
    """Compares recorded launches with a plan."""

    def __init__(self, plan: Plan, dtype: str, weights: str, call: Any, images: Images) -> None:
        self.known = _variants(dtype, weights)
        self._launches, spaces = plan
        self._call, self._images = call, images
        item = 4 if dtype == "fp32" else 2
        sizes = {"T": item, "float32": 4, "int32": 4}
        self._bytes = {s.name: math.prod(s.shape) * sizes[s.dtype] for s in spaces}
        self._outputs = next(
            (dtype if s.dtype == "T" else "fp32" for s in spaces if s.name == "expert_outputs"), ""
        )
        self._places: dict[str, int] = {}

    def check(self, host: Any) -> None:
        said = host(self._call, counts=_counts(self.known))
        assert (said["status"], said["sized"]) == (0, 0), said["error"]
        assert [r["name"] for r in said["launches"]] == [x.kernel for x in self._launches]
        for planned, recorded in zip(self._launches, said["launches"], strict=True):
            self._check_launch(planned, recorded)
        assert self._places.keys() == self._bytes.keys()
        spans = sorted((place, place + self._bytes[n]) for n, place in self._places.items())
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        if spans:
            assert spans[0][0] >= self._call.workspace
            assert spans[-1][1] <= self._call.workspace + said["workspace_bytes"]

    def _check_launch(self, planned: Launch, recorded: dict[str, Any]) -> None:
        variant = _variant(planned, self.known, f"*{self._outputs}")
        image, checksum = self._images[variant.name]
        assert recorded["checksum"] == checksum, f"another kernel than {variant.name}"
        assert tuple(recorded["grid"]) == planned.grid
        assert recorded["block"] == [32 * planned.num_warps, 1, 1] == [image.threads, 1, 1]
        assert recorded["shared_bytes"] == recorded["max_shared"] == image.shared_bytes
        assert recorded["stream"] == self._call.stream
        arguments = iter(recorded["arguments"])
        for name, type_ in variant.signature.items():
            if type_ != "constexpr":
                self._check_argument(name, next(arguments), planned, type_)
        # Triton's scratch memory, of which there is none
        assert [next(arguments), next(arguments)] == [0, 0]

    def _check_argument(self, name: str, value: int, planned: Launch, type_: str) -> None:
        if name in planned.integers:
            width = 32 if type_ == "i32" else 64
            assert value % 2**width == planned.integers[name], name
        elif name in self._bytes:
            assert value % 256 == 0, name
            assert self._places.setdefault(name, value) == value, name
        else:
            # what a kernel never reads is null: a single chunk's states, scales of plain weights
            assert value == self._call.pointers.get(name, 0), name


def _scan_shapes() -> Iterator[Any]:
    lengths = (1, 2, 3, 63, 64, 65, 127, 128, 129, 1000, 4095, 4096, 144_001)
    for seq_len in lengths:
        for batch, d_inner in ((1, 8192), (3, 256), (1, 33), (2, 4096)):
            yield pytest.param(batch, seq_len, d_inner, id=f"{batch}x{seq_len}x{d_inner}")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("batch", "seq_len", "d_inner"), list(_scan_shapes()))
def test_scan_is_launched_as_planned(
    host: Any,
    host_call: Callable[..., Any],
    kernel_images: Images,
    batch: int,
    seq_len: int,
    d_inner: int,
    dtype: str,
) -> None:
    sizes = {"batch": batch, "seq_len": seq_len, "d_inner": d_inner, "d_state": 16}
    call = host_call("SelectiveScan", dtype, sizes)
    plan = plan_selective_scan(batch, seq_len, d_inner, 16)
    _Expectation(plan, dtype, "none", call, kernel_images).check(host)


def _mamba_call(
    host_call: Callable[..., Any], shape: MambaScanShape, dtype: str, eps: float = 1e-6
) -> Any:
    sizes = {
        name: getattr(shape, name) for name in ("batch", "seq_len", "d_inner", "d_state", "dt_rank")
    }
    sizes["dt_b_c"] = shape.dt_rank + 2 * shape.d_state
    call = host_call("MambaScan", dtype, sizes, attributes=f"eps={eps}")
    item = 4 if dtype == "fp32" else 2
    # the kernels of many tokens see the gate alone
    call.pointers["z"] = call.pointers["xz"] + shape.d_inner * item
    return call


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("batch", "d_inner", "dt_rank"), [(1, 8192, 256), (3, 256, 4), (1, 33, 16), (2, 4096, 300)]
)
@pytest.mark.parametrize("seq_len", [1, 2, 3, 63, 64, 65, 129, 1000, 4096, 144_001])
def test_fused_scan_is_launched_as_planned(
    host: Any,
    host_call: Callable[..., Any],
    kernel_images: Images,
    batch: int,
    seq_len: int,
    d_inner: int,
    dt_rank: int,
    dtype: str,
) -> None:
    shape = MambaScanShape(batch, seq_len, d_inner, 16, dt_rank)
    eps = 1e-6 if dt_rank < 300 else 0.0123
    plan = plan_mamba_scan(shape, eps=eps, itemsize=4 if dtype == "fp32" else 2)
    call = _mamba_call(host_call, shape, dtype, eps)
    _Expectation(plan, dtype, "none", call, kernel_images).check(host)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels", "tokens"])
@pytest.mark.parametrize("parts", [1, 2], ids=["alone", "first half"])
@pytest.mark.parametrize("seq_len", [1, 2, 3, 31, 32, 33, 255, 256, 257, 4096])
@pytest.mark.parametrize(("batch", "d_inner"), [(1, 8192), (3, 80), (2, 144)])
def test_convolution_is_launched_as_planned(
    host: Any,
    host_call: Callable[..., Any],
    kernel_images: Images,
    batch: int,
    seq_len: int,
    d_inner: int,
    channels_last: bool,
    parts: int,
    dtype: str,
) -> None:
    sizes = {"batch": batch, "seq_len": seq_len, "d_inner": d_inner, "d_conv": 4}
    sizes["input_row"] = parts * d_inner
    variant, attributes = "", "activation=silu"
    strides = None
    if channels_last:
        strides = (seq_len * parts * d_inner, parts * d_inner, seq_len * d_inner, d_inner)
        variant, attributes = "channels_last", "activation=silu channels_last=1"
    call = host_call("CausalConvWithState", dtype, sizes, variant=variant, attributes=attributes)
    launch = plan_causal_conv(
        batch, seq_len, d_inner, 4, strides=strides, channels_last=channels_last
    )
    call.workspace = None
    _Expectation(([launch], []), dtype, "none", call, kernel_images).check(host)


def _moe_shapes() -> Iterator[Any]:
    rng = np.random.default_rng(3)
    yield pytest.param(MoeShape(1, 4096, 14336, 16, 2), id="published-step")
    yield pytest.param(MoeShape(4096, 4096, 14336, 16, 2), id="published-chunk")
    for tokens in (64, 65, 256, 257):
        # where one tile ends and the next begins
        yield pytest.param(MoeShape(tokens, 4096, 14336, 16, 2), id=f"published-{tokens}")
    yield pytest.param(MoeShape(7, 32, 32, 1, 1), id="one-expert")
    for tokens in (1, 2, 15, 16, 17, 31, 33, 100, 512, 513, 1000, 4095):
        experts = int(rng.integers(2, 65))
        top_k = int(rng.integers(1, min(experts, 8) + 1))
        hidden, intermediate = (32 * int(n) for n in rng.integers(1, 150, 2))
        shape = MoeShape(tokens, hidden, intermediate, experts, top_k)
        yield pytest.param(shape, id=f"{tokens}x{hidden}x{intermediate}-{top_k}of{experts}")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("weights", ["none", "int8", "int4"])
@pytest.mark.parametrize("shape", list(_moe_shapes()))
def test_experts_are_launched_as_planned(
    host: Any,
    host_call: Callable[..., Any],
    kernel_images: Images,
    shape: MoeShape,
    weights: str,
    dtype: str,
) -> None:
    sizes = {
        name: getattr(shape, name)
        for name in ("num_tokens", "hidden", "intermediate", "num_experts")
    }
    attributes = f"top_k={shape.top_k} weight_format={weights}"
    call = host_call("SparseMoE", dtype, sizes, variant=weights, attributes=attributes)
    item = 4 if dtype == "fp32" else 2
    plan = plan_launches(shape, itemsize=item), plan_workspaces(shape, itemsize=item)
    _Expectation(plan, dtype, weights, call, kernel_images).check(host)


def _attention_plan(shape: AttentionShape, dtype: str, multiprocessors: int) -> Plan:
    """Return the plan without what appends to the caches: TensorRT does that."""
    tiles = tiles_of(80, itemsize=4 if dtype == "fp32" else 2)
    (_, *launches), spaces = plan_cached_attention(
        shape, tiles=tiles, multiprocessors=multiprocessors
    )
    return launches, spaces


def _attention_shapes() -> Iterator[Any]:
    lengths = (1, 2, 5, 16, 17, 21, 22, 127, 128, 129, 1000, 4096)
    for seq_len in lengths:
        for batch, kv_heads, capacity in ((1, 8, 176_000), (3, 2, 4099), (16, 1, 65)):
            for head_dim, group in HEADS:
                shape = AttentionShape(
                    batch, seq_len, group * kv_heads, kv_heads, head_dim, capacity
                )
                yield pytest.param(
                    shape, id=f"{batch}x{seq_len}x{kv_heads}x{group}x{head_dim}-{capacity}"
                )
    for batch in range(2, 17):
        yield pytest.param(AttentionShape(batch, 1, 32, 8, 128, 20_000), id=f"{batch}-sequences")


def _attention_call(host_call: Callable[..., Any], shape: AttentionShape, dtype: str) -> Any:
    names = ("batch", "seq_len", "heads", "kv_heads", "head_dim", "capacity")
    return host_call("CachedAttention", dtype, {name: getattr(shape, name) for name in names})


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("shape", list(_attention_shapes()))
def test_attention_is_launched_as_planned(
    host: Any,
    host_call: Callable[..., Any],
    kernel_images: Images,
    shape: AttentionShape,
    dtype: str,
) -> None:
    plan = _attention_plan(shape, dtype, 108)
    call = _attention_call(host_call, shape, dtype)
    _Expectation(plan, dtype, "none", call, kernel_images).check(host)


@pytest.mark.parametrize("multiprocessors", [1, 30, 132, 191, 192, 300])
def test_a_step_of_attention_fills_the_card_at_hand(
    host: Any, host_call: Callable[..., Any], kernel_images: Images, multiprocessors: int
) -> None:
    shape = AttentionShape(3, 1, 32, 8, 128, 176_000)
    plan = _attention_plan(shape, "bf16", min(multiprocessors, MAX_MULTIPROCESSORS))
    call = _attention_call(host_call, shape, "bf16")
    card = functools.partial(
        host, multiprocessors=multiprocessors, context=0x2000 + multiprocessors
    )
    _Expectation(plan, "bf16", "none", call, kernel_images).check(card)


def test_the_comparison_sees_a_wrong_plan(
    host: Any, host_call: Callable[..., Any], kernel_images: Images
) -> None:
    sizes = {"batch": 1, "seq_len": 1000, "d_inner": 256, "d_state": 16}
    call = host_call("SelectiveScan", "bf16", sizes)
    for wrong in ((1, 1001, 256, 16), (2, 1000, 256, 16), (1, 1000, 288, 16)):
        with pytest.raises(AssertionError):
            _Expectation(plan_selective_scan(*wrong), "bf16", "none", call, kernel_images).check(
                host
            )
    for wrong_dtype in ("fp16", "fp32"):
        plan = plan_selective_scan(1, 1000, 256, 16)
        with pytest.raises(AssertionError):
            _Expectation(plan, wrong_dtype, "none", call, kernel_images).check(host)


def _needed(spaces: list[Workspace], item: int) -> int:
    sizes = {"T": item, "float32": 4, "int32": 4}
    return sum(-(-math.prod(s.shape) * sizes[s.dtype] // 256) * 256 for s in spaces)


@pytest.mark.parametrize(
    ("batch", "seq_len", "d_inner"),
    [(1, 4096, 8192), (4, 4096, 8192), (4, 700, 256), (9, 5000, 33), (2, 3, 64)],
)
def test_workspace_of_a_scan_is_enough_for_every_smaller_call(
    host: Any, host_call: Callable[..., Any], batch: int, seq_len: int, d_inner: int
) -> None:
    sizes = {"batch": batch, "seq_len": seq_len, "d_inner": d_inner, "d_state": 16}
    said = host(host_call("SelectiveScan", "bf16", sizes))
    lengths = {*range(1, min(seq_len, 300) + 1), *range(seq_len, 0, -37)}
    most = max(
        _needed(plan_selective_scan(b, n, d_inner, 16)[1], 2)
        for b in range(1, batch + 1)
        for n in lengths
    )
    assert most <= said["workspace_bytes"] <= 2 * most + 1024


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("batch", "seq_len", "d_inner", "dt_rank"),
    [(1, 4096, 8192, 256), (4, 700, 256, 4), (9, 500, 33, 7), (2, 3, 64, 16), (16, 2, 8192, 256)],
)
def test_workspace_of_a_fused_scan_is_enough_for_every_smaller_call(
    host: Any,
    host_call: Callable[..., Any],
    batch: int,
    seq_len: int,
    d_inner: int,
    dt_rank: int,
    dtype: str,
) -> None:
    item = 4 if dtype == "fp32" else 2
    shape = MambaScanShape(batch, seq_len, d_inner, 16, dt_rank)
    said = host(_mamba_call(host_call, shape, dtype))

    def needed(sequences: int, tokens: int) -> int:
        smaller = MambaScanShape(sequences, tokens, d_inner, 16, dt_rank)
        return _needed(plan_mamba_scan(smaller, eps=1e-6, itemsize=item)[1], item)

    lengths = {*range(1, min(seq_len, 300) + 1), *range(seq_len, 0, -37)}
    most = max(needed(b, n) for b in range(1, batch + 1) for n in lengths)
    assert most <= said["workspace_bytes"] <= 2 * most


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(
    ("batch", "seq_len", "kv_heads", "heads", "capacity"),
    [(1, 4096, 8, HEADS[1], 176_000), (16, 1, 8, HEADS[1], 300), (3, 30, 2, HEADS[0], 5000)],
)
def test_workspace_of_attention_is_enough_for_every_smaller_call(
    host: Any,
    host_call: Callable[..., Any],
    batch: int,
    seq_len: int,
    kv_heads: int,
    heads: tuple[int, int],
    capacity: int,
    dtype: str,
) -> None:
    head_dim, group = heads

    def shape(sequences: int, tokens: int) -> AttentionShape:
        return AttentionShape(sequences, tokens, kv_heads * group, kv_heads, head_dim, capacity)

    said = host(_attention_call(host_call, shape(batch, seq_len), dtype))
    most = max(
        _needed(_attention_plan(shape(b, n), dtype, count)[1], 2)
        for b in range(1, batch + 1)
        for n in range(1, min(seq_len, 70) + 1)
        for count in (1, 108, MAX_MULTIPROCESSORS)
    )
    assert said["workspace_bytes"] == most


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("num_tokens", [1, 16, 17, 18, 40, 1000])
def test_workspace_of_experts_is_enough_for_every_smaller_call(
    host: Any, host_call: Callable[..., Any], num_tokens: int, dtype: str
) -> None:
    sizes = {"hidden": 4096, "intermediate": 14336, "num_experts": 16, "num_tokens": num_tokens}
    said = host(host_call("SparseMoE", dtype, sizes, variant="none", attributes="top_k=2"))
    item = 4 if dtype == "fp32" else 2
    smaller = [MoeShape(n, 4096, 14336, 16, 2) for n in range(1, num_tokens + 1)]
    most = max(_needed(plan_workspaces(each, itemsize=item), item) for each in smaller)
    assert said["workspace_bytes"] == most
