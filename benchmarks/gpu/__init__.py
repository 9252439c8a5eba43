"""The GPU lane: `python -m benchmarks.gpu.run --out FOLDER`. What each file measures, and how to run it: docs/gpu.md.

run.py starts child.py once a step, listed in steps.py; a step is a generator of rows. lane.py is what a step is given;
inputs.py, oracles.py, roofline.py, timing.py and compare.py are what steps are made of. prepare.py makes what can be made
without a GPU.
"""
