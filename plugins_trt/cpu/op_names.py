"""Names and domain of our operators in onnxruntime-extensions."""

from __future__ import annotations

__all__ = [
    "ATTENTION",
    "CAUSAL_CONV",
    "DOMAIN",
    "LINEAR",
    "MOE",
    "MOE_CODES",
    "MOE_STACKED",
    "SCAN",
]

DOMAIN = "ai.onnx.contrib"
ATTENTION = "LongLLaVAAttention"
CAUSAL_CONV = "LongLLaVACausalConv"
LINEAR = "LongLLaVALinear"
MOE = "LongLLaVASparseMoE"
MOE_STACKED = "LongLLaVASparseMoEStacked"
MOE_CODES = {"int8": "LongLLaVASparseMoEInt8", "int4": "LongLLaVASparseMoEInt4"}
SCAN = "LongLLaVASelectiveScan"
