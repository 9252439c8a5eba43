"""Every exception this project raises on purpose.

A message says where, what was expected, what came, and what to do. The command line prints it as one
paragraph; any exception that is not a `LongLLaVAError` is a bug and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContractError",
    "ExportError",
    "InputError",
    "LongLLaVAError",
    "ManifestError",
    "MissingDependencyError",
    "ParityError",
]


class LongLLaVAError(Exception):
    """Base of all expected failures."""

    exit_code = 2
    """Process exit status: 1 a check failed, 2 bad input, 3 something needed is missing."""


class ConfigError(LongLLaVAError):
    """A field of config.json, or an option, is missing, unknown or has a value we cannot honour."""


class CheckpointError(LongLLaVAError):
    """The checkpoint's files or tensors are not what its config says; lists every difference."""


class ContractError(LongLLaVAError):
    """A tensor's name, shape or dtype is not what its stage declares."""


class ExportError(LongLLaVAError):
    """A stage could not be exported; names the stage."""


class InputError(LongLLaVAError):
    """The user's prompt, image or generation request cannot be served as given."""


class ManifestError(LongLLaVAError):
    """A bundle is incomplete, altered, or written by an incompatible version."""


class ParityError(LongLLaVAError):
    """Two results that must agree do not."""

    exit_code = 1


class MissingDependencyError(LongLLaVAError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 3
