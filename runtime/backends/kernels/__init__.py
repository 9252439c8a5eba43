"""The whole model on PyTorch and this project's Triton kernels, on any CUDA GPU without TensorRT.

requirements.py   what a machine must have, and what it lacks
weight_plan.py    which fused tensors there are, and what they are made of
weights.py        those tensors on the device: from a bundle's files, or random
device.py         a stream, and arrays on their way to it and back
state.py          what sequences carry: slots that are allocated once
mamba_scan.py     mamba-ssm's selective scan for first chunks, where it is installed
decoder_model.py  the decoder as functions over kernels
decoder.py        steps of one sequence or of several; decode steps as CUDA graphs
graph.py          a captured step
stages.py         vision, projector and embed
backend.py        all of it as a `Backend`

Only modules of this folder import PyTorch and Triton; `requirements` and `weight_plan` do not.
"""
