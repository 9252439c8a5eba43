"""The host code under the compiler's sanitizers: bad memory, undefined behaviour, races of threads.

The library is compiled with each, and a program calls it over and over, with a driver that only records.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from longllava_trt.plugins_trt.library.aot import compile_images
from longllava_trt.plugins_trt.library.build import PluginLibrary
from longllava_trt.plugins_trt.library.codegen import write_sources
from longllava_trt.plugins_trt.library.compiler import link_library
from longllava_trt.plugins_trt.library.headers import find_headers
from tests.plugins_trt.csrc.conftest import HEADS, HostCall

pytestmark = pytest.mark.slow

CSRC = Path(__file__).parents[3] / "plugins_trt" / "csrc"
HAMMER = Path(__file__).parents[1] / "data" / "hammer_host.cpp"
SANITIZERS = ("address,undefined", "thread")
FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
OPTIONS = {
    # what the stand-in hands out is never given back
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
SIZES: dict[str, dict[str, int]] = {
    "SelectiveScan": {"batch": 1, "seq_len": 200, "d_inner": 64, "d_state": 16},
    "MambaScan": {
        "batch": 1,
        "seq_len": 200,
        "d_inner": 64,
        "d_state": 16,
        "dt_rank": 4,
        "dt_b_c": 36,
    },
    "CausalConvWithState": {"batch": 1, "seq_len": 200, "d_inner": 64, "d_conv": 4},
    "CachedAttention": {
        "batch": 2,
        "seq_len": 1,
        "heads": 8,
        "kv_heads": 2,
        "head_dim": 128,
        "capacity": 300,
    },
    "SparseMoE": {"num_tokens": 5, "hidden": 64, "intermediate": 96, "num_experts": 4},
}
ATTRIBUTES = {
    "MambaScan": "eps=1e-6",
    "CausalConvWithState": "activation=silu",
    "SparseMoE": "top_k=2",
}
HUGE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Hammer:
    """The program, and the folder of the driver that records."""

    program: Path
    driver: Path

    def __call__(
        self, calls: list[HostCall], *, threads: int = 1, rounds: int = 1, failing: str = ""
    ) -> list[list[int]]:
        """Make all calls in each thread; return their statuses, a list a thread."""
        done = subprocess.run(
            [self.program, str(threads), str(rounds), failing],
            input="\n".join(map(line, calls)),
            env={**os.environ, **OPTIONS, "LD_LIBRARY_PATH": str(self.driver)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if "unexpected memory mapping" in done.stderr:
            pytest.skip(
                "races of the host code are unproven: the sanitizer does not run on this kernel"
            )
        assert done.returncode == 0, done.stderr[-4000:]
        return [[int(word) for word in found.split()] for found in done.stdout.splitlines()]


def line(call: HostCall) -> str:
    """Return a call as the program reads it."""
    words: list[Any] = [call.op_type, call.attributes.replace(" ", ";") or "-"]
    words += [call.workspace or 0, call.stream, len(call.inputs), len(call.outputs)]
    for tensor in (*call.inputs, *call.outputs):
        dims = tensor["dims"]
        words += [tensor["type"], tensor.get("rank", len(dims)), len(dims), *dims]
        words.append(tensor["data"] or 0)
    return " ".join(map(str, words))


@pytest.fixture(scope="module")
def sources(plugin_library: PluginLibrary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated sources and kernels of one dtype, to be compiled more than once."""
    folder = tmp_path_factory.mktemp("sources")
    images = compile_images(
        folder,
        archs=(80,),
        dtypes=("bf16",),
        weight_formats=("none",),
        heads=HEADS,
        triton_cache=plugin_library.path.parents[2] / "triton",
    )
    write_sources(folder, images, heads=HEADS, digest="sanitized")
    return folder


@pytest.fixture(scope="module", params=SANITIZERS)
def hammer(
    request: pytest.FixtureRequest,
    sources: Path,
    plugin_library: PluginLibrary,
    stand_in_driver: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Hammer:
    flags = (f"-fsanitize={request.param}", *FLAGS)
    folder = tmp_path_factory.mktemp("sanitized")
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    compiled = subprocess.run(
        ["g++", *flags, str(probe), "-o", str(folder / "probe")], capture_output=True, check=False
    )
    if compiled.returncode:
        pytest.skip(f"the host code is unproven: this g++ has no -fsanitize={request.param}")
    shutil.copytree(sources, folder, dirs_exist_ok=True)
    headers = find_headers(None, cache=plugin_library.path.parents[2]).folder
    link_library(folder, CSRC, headers=headers, name="libsanitized.so", flags=flags)
    program = folder / "hammer"
    command = ["g++", "-std=c++17", *flags, "-I", str(CSRC), str(HAMMER), "-o", str(program)]
    command += [str(folder / "libsanitized.so"), f"-Wl,-rpath,{folder}", "-ldl", "-pthread"]
    subprocess.run(command, check=True)
    return Hammer(program, stand_in_driver.parent)


@pytest.fixture
def good(host_call: Callable[..., HostCall]) -> list[HostCall]:
    """A chunk and a step of every operator."""
    calls = []
    for op_type, sizes in SIZES.items():
        variant = "none" if op_type == "SparseMoE" else ""
        attributes = ATTRIBUTES.get(op_type, "")
        length = "num_tokens" if op_type == "SparseMoE" else "seq_len"
        for tokens in (1, 2, 200):
            changed = sizes | {length: tokens}
            calls.append(
                host_call(op_type, "bf16", changed, variant=variant, attributes=attributes)
            )
    return calls


def broken(host_call: Callable[..., HostCall]) -> Iterator[HostCall]:
    """Yield calls that must be refused, each wrong in one place."""
    for op_type, sizes in SIZES.items():
        variant = "none" if op_type == "SparseMoE" else ""
        attributes = ATTRIBUTES.get(op_type, "")

        def call(
            v: str = variant, a: str = attributes, n: str = op_type, s: Any = sizes
        ) -> HostCall:
            return host_call(n, "bf16", s, variant=v, attributes=a)

        for change in (
            {"data": None},
            {"data": 3},
            {"type": 77},
            {"type": -1},
            {"rank": 9},
            {"rank": -1},
            {"rank": 0},
            {"rank": 2**31 - 1},
            {"dims": [HUGE] * 8, "rank": 8},
            {"dims": [-HUGE - 1] * 4, "rank": 4},
            {"dims": [0, 0, 0]},
        ):
            for place in ("inputs", "outputs"):
                made = call()
                getattr(made, place)[0] |= change
                yield made
        for dim in (HUGE, 2**31, 2**32 + 1, -1):
            made = call()
            rank = len(made.inputs[0]["dims"])
            made.inputs[0]["dims"] = [dim] * rank
            yield made
        for text in ("top_k=99999999999999999999", "a" * 5000, "=", "=;=", "top_k=", "x=1;x=1"):
            made = call()
            made.attributes = text.replace(";", " ")
            yield made
        made = call()
        made.op_type = "Z" * 5000
        yield made
        made = call()
        del made.inputs[1:]
        yield made


def test_good_calls_are_clean_and_launch(hammer: Hammer, good: list[HostCall]) -> None:
    assert hammer(good, rounds=2) == [[0] * len(good)]


def test_threads_do_not_meet(hammer: Hammer, good: list[HostCall]) -> None:
    assert hammer(good, threads=6, rounds=10) == [[0] * len(good)] * 6


def test_what_is_refused_is_refused_cleanly(
    hammer: Hammer, host_call: Callable[..., HostCall]
) -> None:
    calls = list(broken(host_call))
    assert hammer(calls, threads=2) == [[-1] * len(calls)] * 2


@pytest.mark.parametrize(
    "failing", ["cuInit", "cuCtxGetCurrent", "cuModuleLoadDataEx", "cuLaunchKernel"]
)
def test_a_failing_driver_is_clean(hammer: Hammer, good: list[HostCall], failing: str) -> None:
    assert hammer(good, threads=4, rounds=2, failing=failing) == [[-1] * len(good)] * 4


def test_the_sanitizer_sees_a_fault(hammer: Hammer, tmp_path: Path) -> None:
    """A program with a fault of each kind does not end well: so silence means something."""
    source = tmp_path / "fault.cpp"
    source.write_text(
        "#include <thread>\nint volatile shared;\nint main(int n, char**)\n{\n"
        "    std::thread other{[] { for (int i = 0; i < 100000; ++i) shared = i; }};\n"
        "    for (int i = 0; i < 100000; ++i) shared = i;\n    other.join();\n"
        "    int volatile* const few = new int[n];\n    few[n] = 1;\n    return few[n] - 1;\n}\n"
    )
    kind = "thread" if "thread" in _sanitizer(hammer) else "address"
    program = tmp_path / "fault"
    subprocess.run(
        ["g++", f"-fsanitize={kind}", *FLAGS, "-pthread", str(source), "-o", str(program)],
        check=True,
    )
    done = subprocess.run(
        [program], env={**os.environ, **OPTIONS}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert {"thread": "data race", "address": "heap-buffer-overflow"}[kind] in done.stderr


def _sanitizer(hammer: Hammer) -> str:
    done = subprocess.run(["ldd", hammer.program], capture_output=True, text=True, check=True)
    return "thread" if "libtsan" in done.stdout else "address"
