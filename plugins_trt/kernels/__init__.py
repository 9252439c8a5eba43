"""The custom operators on a GPU: Triton kernels, each beside a plain PyTorch version.

    selective_scan.py   the scan: chunk summaries, inter-chunk prefix, outputs; and a decode step
    causal_conv.py      the convolution: a chunk and a decode step
    rms_norm.py         RMSNorm with the residual sum; of dt, B and C at once
    activations.py      SwiGLU of a fused product, quick GELU
    elementwise.py      SiLU, softplus
    naive.py            scan, convolution, norms, activations in plain PyTorch, slow and obvious
    variants.py         the two as they are compiled ahead of time
    sparse_moe*.py      routing, sorting by expert, grouped products; in the same order
    cached_attention*.py    writes the caches; attention of a chunk, and of a step in parts; in the same order
    resources.py        compiles for a GPU that need not be there; lists registers and shared memory

A kernel takes pointers and integers only, so that C++ can launch what was compiled ahead of time. Modules with kernels
import Triton, so nothing outside this folder imports them at its top. None imports torch: the launchers only use
methods of the tensors that they are given.
"""
