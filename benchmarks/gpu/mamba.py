"""mamba-ssm's own CUDA selective scan, compiled from its source, on the inputs of ours.

Its forward files alone are compiled, for this card; its backward, which its bindings name, is stood
in for. Its layout is channels before time, and it takes float32 weights and begins from a state of
zeros.

    python -m benchmarks.gpu.mamba SOURCE     compiles it beforehand, beside other work; the step
    then loads it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.compare import attempt, share
from benchmarks.gpu.context import BenchContext
from benchmarks.gpu.inputs import scan_inputs
from benchmarks.gpu.oracles import relative_rms, scan_oracle
from benchmarks.gpu.roofline import scan_work
from benchmarks.gpu.scan import D_STATE, scan_sizes
from benchmarks.gpu.timing import time_ms

if TYPE_CHECKING:
    from torch import Tensor

    from longllava_trt.runtime.backends.kernels.decoder_model import Scan

__all__ = ["mamba", "source_scan"]

_STAND_IN = """
#include <torch/extension.h>
#include <cuda_runtime.h>
#include "selective_scan.h"

template <typename Input, typename Weight>
void selective_scan_bwd_cuda(SSMParamsBwd&, cudaStream_t) { TORCH_CHECK(false, "forward only"); }

#define BOTH(Input) \\
    template void selective_scan_bwd_cuda<Input, float>(SSMParamsBwd&, cudaStream_t); \\
    template void selective_scan_bwd_cuda<Input, c10::complex<float>>(SSMParamsBwd&, cudaStream_t);
BOTH(at::Half)
BOTH(at::BFloat16)
BOTH(float)
"""


def mamba(context: BenchContext) -> Iterator[dict[str, Any]]:
    """Yield a row a length."""
    if context.mamba is None or context.is_dry:
        yield {"case": "not run: name the unpacked source with --mamba"}
        return
    kernels = _compile(context.mamba)
    lengths, d_inner = scan_sizes(context)
    for seq_len in lengths:
        yield attempt(f"L {seq_len}", lambda n=seq_len: _row(kernels, context, n, d_inner))  # type: ignore[misc]


def _compile(source: Path) -> Any:
    import torch
    from torch.utils import cpp_extension

    major, minor = torch.cuda.get_device_capability()
    folder = next(source.rglob("selective_scan.cpp")).parent
    built = source / "build"
    built.mkdir(exist_ok=True)
    stand_in = built / "stand_in.cpp"
    # written once: a newer file would be compiled again
    if not stand_in.is_file():
        stand_in.write_text(_STAND_IN, encoding="utf-8")
    files = [folder / f"selective_scan_fwd_{dtype}.cu" for dtype in ("bf16", "fp16", "fp32")]
    return cpp_extension.load(
        "selective_scan_forward",
        [str(file) for file in (folder / "selective_scan.cpp", *files, stand_in)],
        extra_include_paths=[str(folder)],
        extra_cuda_cflags=[
            "-O3",
            "--use_fast_math",
            "--expt-relaxed-constexpr",
            "--expt-extended-lambda",
            "-U__CUDA_NO_HALF_OPERATORS__",
            "-U__CUDA_NO_HALF_CONVERSIONS__",
            "-U__CUDA_NO_BFLOAT16_OPERATORS__",
            "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
            f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}",
        ],
        build_directory=str(built),
        verbose=True,
    )


def source_scan(source: Path) -> Scan:
    """Return the compiled scan with the arguments of ours; it begins with a state of zeros."""
    from longllava_trt.runtime.backends.kernels.mamba_scan import mamba_scan

    kernels = _compile(source)

    def scan(  # noqa: PLR0913 - the arguments of `selective_scan_fn`
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        *,
        delta_softplus: bool,
        return_last_state: bool,
    ) -> tuple[Tensor, Tensor]:
        assert return_last_state, "Bug: ours always returns the state"
        taken = [t.contiguous() for t in (u, delta, B[:, None], C[:, None], z)]
        u, delta, B, C, z = taken
        _, states, gated = kernels.fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        # pairs of decay and state after each block
        return gated, states[:, :, -1, 1::2]

    return partial(mamba_scan, scan)


def _row(kernels: Any, context: BenchContext, seq_len: int, d_inner: int) -> dict[str, Any]:
    import torch

    tensors = scan_inputs(seq_len, d_inner, D_STATE, dtype=torch.bfloat16, device=context.device)
    tensors["state"].zero_()
    u, dt, z, b, c = (
        tensors[name].transpose(1, 2).contiguous() for name in ("u", "dt", "z", "B", "C")
    )
    A, D = -tensors["A_log"].float().exp(), tensors["D"].float()
    bias = tensors["dt_bias"].float()

    def call(_: int) -> Any:
        return kernels.fwd(u, dt, A, b[:, None], c[:, None], D, z, bias, True)

    error = relative_rms(call(0)[2].transpose(1, 2), scan_oracle(tensors)[0])
    work = scan_work(seq_len, d_inner, D_STATE, itemsize=2)
    return {"error": error, **share(work, time_ms(call, device=context.device), context)}


if __name__ == "__main__":
    _compile(Path(sys.argv[1]).absolute())
