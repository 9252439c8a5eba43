"""Every exception this project raises on purpose.

A message names the place, the expected and the actual value, and what to do. The command line
prints it as one paragraph. Any exception that is not a `LongLLaVAError` is a bug and keeps its
traceback.
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
    """Exit status of the process: 1 a check failed, 2 bad input, 3 a requirement is missing."""


class ConfigError(LongLLaVAError):
    """A field of config.json, or an option, is missing, unknown or has an unsupported value."""


class CheckpointError(LongLLaVAError):
    """The checkpoint's files or tensors differ from its config; lists every difference."""


class ContractError(LongLLaVAError):
    """A tensor's name, shape or dtype is not what its stage declares."""


class ExportError(LongLLaVAError):
    """A stage could not be exported; names the stage."""


class InputError(LongLLaVAError):
    """The user's prompt, image or generation request cannot be served as given."""


class ManifestError(LongLLaVAError):
    """A bundle is incomplete, altered, or written by an incompatible version."""


class ParityError(LongLLaVAError):
    """Two results differ that must agree."""

    exit_code = 1


class MissingDependencyError(LongLLaVAError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 3
