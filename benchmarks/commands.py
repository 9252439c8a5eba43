"""Runs `longllava-trt` in a process of its own, for scripts that measure it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["longllava"]


def longllava(verb: str, *arguments: str | Path) -> tuple[dict[str, Any], int]:
    """Run a command; returns its JSON document, and the peak memory of its process and their children."""
    command = [sys.executable, "-m", "longllava_trt", verb, *map(str, arguments), "--json", "-q"]
    with tempfile.TemporaryFile("w+") as output:
        stdout = (os.POSIX_SPAWN_DUP2, output.fileno(), 1)
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=[stdout])
        _, status, usage = os.wait4(pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            sys.exit(f"error: '{' '.join(command)}' ended with exit status {code}")
        output.seek(0)
        document: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    return document, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
