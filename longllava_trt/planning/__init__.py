"""Forecast of a model on a GPU, before any work is done: memory, arithmetic, time, images that fit.

gpus.py      the GPUs by name, or by their three numbers
flops.py     arithmetic of every stage
memory.py    bytes on the device
estimate.py  the plan: all of it together, whether it fits, and the nearest that does

Everything is arithmetic on config.json; of engines that exist, memory is read from engine.json.
Times are bounds from the GPU's published peaks, not measurements.
"""

from longllava_trt.planning.estimate import EngineMemory, Plan, PlanRequest, make_plan
from longllava_trt.planning.gpus import GPUS, Gpu, find_gpu

__all__ = ["GPUS", "EngineMemory", "Gpu", "Plan", "PlanRequest", "find_gpu", "make_plan"]
