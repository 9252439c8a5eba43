"""The custom operators on a GPU: Triton kernels, each beside a plain PyTorch version.

    selective_scan.py   the scan: chunk summaries, inter-chunk prefix, outputs; and a decode step
    causal_conv.py      the convolution: a chunk and a decode step
    elementwise.py      SiLU, softplus
    naive.py            scan and convolution in plain PyTorch, slow and obvious
    variants.py         the two as they are compiled ahead of time
    sparse_moe*.py      routing, sorting by expert, grouped products; in the same order
    resources.py        compiles for a GPU that need not be there; lists registers and shared memory

A kernel takes pointers and integers only, so that C++ can launch what was compiled ahead of time. Modules with kernels
import Triton, so nothing outside this folder imports them at its top. None imports torch: the launchers only use
methods of the tensors that they are given.
"""
