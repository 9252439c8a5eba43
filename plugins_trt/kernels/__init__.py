"""The custom operators on a GPU: Triton kernels, each beside a plain PyTorch version.

    selective_scan.py   the scan: chunk summaries, inter-chunk prefix, outputs; and a decode step
    causal_conv.py      the convolution: a chunk and a decode step
    rms_norm.py         RMSNorm with the residual sum; of dt, B and C at once
    activations.py      SwiGLU of a fused product, quick GELU
    elementwise.py      SiLU, softplus
    naive.py            scan, convolution, norms, activations in plain PyTorch, slow and obvious
    variants.py         scan and convolution as they are compiled ahead of time
    sparse_moe*.py      routing, sorting by expert, grouped products
    cached_attention*.py    writes the caches; attention of a chunk, and of a step in parts
    resources.py        compiles for any GPU; lists registers and shared memory
    census.py           counts instructions of the loops in compiled code

A kernel takes only pointers and integers, so that C++ can launch a compiled kernel. Modules with
kernels import Triton, so modules outside this folder do not import them at the top. None imports
torch: launchers only use methods of the tensors that they get.
"""
