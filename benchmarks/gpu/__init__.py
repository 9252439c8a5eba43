"""GPU benchmarks: `python -m benchmarks.gpu.run --out FOLDER`. docs/gpu.md says how to run them.

run.py starts child.py once a step, listed in steps.py; a step is a generator of rows. context.py is what a step is given;
inputs.py, oracles.py, roofline.py, timing.py and compare.py are what steps are made of. prepare.py makes what can be made
without a GPU.
"""
