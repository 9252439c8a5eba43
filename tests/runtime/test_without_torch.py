"""A bundle runs where PyTorch, transformers and the exporter's packages cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        blocked = {"torch", "transformers", "onnxscript", "onnx_ir"}
        if name.split(".")[0] in blocked or name.startswith(
            ("longllava_trt.reference", "longllava_trt.export")
        ):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    sys.exit("the blocker does not block")

from PIL import Image
from longllava_trt.runtime.model import LongLLaVA

model = LongLLaVA.from_bundle(sys.argv[1])
answer = model.generate("What is this?", [Image.new("RGB", (40, 30), "red")], max_new_tokens=5)
assert len(answer.token_ids) == 5, answer
print("ran")
"""


def test_a_bundle_runs_without_torch(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_bundle)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ran\n", done.stderr
