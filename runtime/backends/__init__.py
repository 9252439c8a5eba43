"""Backends, which run a bundle's stages.

base.py           the protocols, and the limits a backend states
ort/              ONNX Runtime on a CPU
trt/              TensorRT engines on a GPU
kernels/          PyTorch with our Triton kernels on a GPU
graph_proof.py    whether a captured decode step gives what the step gives
weight_loader.py  weights from a bundle's files to a device, through a ring of small buffers
"""
