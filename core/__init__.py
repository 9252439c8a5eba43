"""The floor: what every room may use. Knows no model and imports no other room.

errors.py             what a user can cause; logs.py progress and log records; version.py
json_file.py publish.py digests.py    files: read, published whole or not at all, hashed
parity.py             tolerances with their reasons, comparison, report
manifest.py           what a bundle consists of; engine_record.py what engines consist of
safetensors_*.py      headers and index of a checkpoint's weights
"""
