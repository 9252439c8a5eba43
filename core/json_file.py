"""Reading a JSON file that a user gave us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longllava_trt.core.errors import ConfigError

__all__ = ["read_json_object"]


def read_json_object(path: Path, *, whose: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        whose: Text for the error if the file is missing: the place that it should come from.

    Raises:
        ConfigError: If the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(f"{path}: not found; {whose}") from err
    except (OSError, ValueError) as err:
        raise ConfigError(f"{path}: cannot be read as JSON ({err})") from err
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value
