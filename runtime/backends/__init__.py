"""What runs a bundle's stages.

base.py           the protocols, and the limits a backend states
select.py         opens a backend by its name
ort/              ONNX Runtime on a CPU
trt/              TensorRT engines on a GPU
weight_loader.py  weights from a bundle's files to a device, through a ring of small buffers
"""
