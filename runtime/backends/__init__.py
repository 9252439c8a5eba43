"""What runs a bundle's stages.

base.py           the protocols
ort/              ONNX Runtime on a CPU
trt/              TensorRT engines on a GPU
weight_loader.py  weights from a bundle's files to a device, through a ring of small buffers
"""
