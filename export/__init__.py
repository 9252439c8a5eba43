"""Checkpoint to bundle, one stage at a time, without its weights in memory.

operators.py    the reference's operators as ONNX nodes
stages.py       modules that are traced
trace.py        torch.export under FakeTensorMode, weights as graph inputs
weights.py      initializers that refer to the checkpoint's own files
check.py        the ONNX checker and the stage's contract
options.py      what an export may be asked for
bundle.py       all stages into a folder, published at once
"""
