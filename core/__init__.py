"""Code that every other package may use. Knows no model and imports no other package of ours.

errors.py             errors that a user can cause; logs.py progress and log records; version.py
json_file.py publish.py digests.py    files: read, published whole or not at all, hashed
parity.py             tolerances with their reasons, comparison, report
manifest.py           contents of a bundle; engine_record.py contents of a folder of engines
dtypes.py             the one table of dtypes; weight_formats.py the one of formats for experts
byte_range.py         bytes of a file: what stored tensors and weights have in common
safetensors_*.py      header of a file of weights, and the one writer
"""
