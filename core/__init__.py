"""Code that every other package may use. Knows no model and imports no other package of ours.

errors.py             errors that a user can cause; logs.py progress and log records; version.py
json_file.py publish.py digests.py    files: read, published whole or not at all, hashed
parity.py             tolerances with their reasons, comparison, report
manifest.py           contents of a bundle; engine_record.py contents of a folder of engines
safetensors_*.py      headers and index of a checkpoint's weights
"""
