"""Parity of a bundle with the reference, at four depths; and what quantised experts cost.

    op          each operator of the decoder alone, as the bundle's own node
    layer       the residual stream and the carried state after each layer
    stage       each stage on the reference's inputs; whole prompt == chunks == steps
    generation  a prompt with images, from pixels to tokens
    experts     quantised experts against the checkpoint's: codes and scales; how far the results move

    parity_case.py                                  a bundle and the reference that it must equal
    operators.py layers.py stages.py generation.py  one depth each
    experts.py quantisation.py                      the reference with dequantised experts; level experts
    run.py                                          all of them, one decoder in memory at a time

Running a validation needs PyTorch, because the reference does; importing this module does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longllava_trt.core.errors import InputError, MissingDependencyError
from longllava_trt.core.logs import Progress
from longllava_trt.core.parity import ParityReport
from longllava_trt.runtime.backends.ort.kernels import KERNEL_ALIASES, KERNELS, Kernels

__all__ = ["KERNELS", "LEVELS", "validate"]

LEVELS = ("op", "layer", "stage", "generation", "experts")
"""Depths, the deepest first, and `experts`, which only a bundle with quantised ones has; each row's name begins with
one of them."""


def validate(  # noqa: PLR0913 - the options of the command line, one to one
    bundle: Path,
    checkpoint: Path,
    *,
    levels: Sequence[str] = LEVELS,
    kernels: Sequence[Kernels] = KERNELS,
    seed: int = 0,
    images: Sequence[Path] = (),
    max_new_tokens: int = 64,
    vision_tower: Path | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Compare a bundle with the reference.

    Args:
        bundle: Folder, exported with float32 arithmetic.
        checkpoint: Folder that it was exported from.
        levels: Some of `LEVELS`.
        kernels: Some of `KERNELS`.
        seed: Of everything random. Not negative.
        images: Shown in the generated prompt; synthetic ones if there are none.
        max_new_tokens: Tokens to generate.
        vision_tower: Folder whose vision tower the bundle was exported with, if not the checkpoint's own.
        progress: Called before and after each part.

    Returns:
        One row a comparison, in the order of the levels.

    Raises:
        InputError: If an argument is not one of these, the bundle does not compute in float32, or it was not exported
            from this checkpoint.
        MissingDependencyError: If PyTorch is not installed.
    """
    _check_choices("levels", levels, LEVELS)
    kernels = [KERNEL_ALIASES.get(name, name) for name in kernels]
    _check_choices("kernels", kernels, KERNELS)
    if seed < 0 or max_new_tokens < 1:
        raise InputError(
            f"validate: seed must be >= 0 and max_new_tokens >= 1, got {seed} and {max_new_tokens}"
        )
    try:
        from longllava_trt.validation.parity_case import ParityCase
        from longllava_trt.validation.run import run_levels
    except ImportError as err:
        raise MissingDependencyError(
            f"validate: the reference needs '{err.name}', which is not installed; install longllava-trt[export]"
        ) from err
    subject = ParityCase.open(bundle, checkpoint, vision_tower=vision_tower)
    if subject.original is None and set(levels) == {"experts"}:
        raise InputError(f"{bundle}: has no quantised experts to compare; choose another level")
    return run_levels(
        subject,
        levels,
        kernels=kernels,
        seed=seed,
        images=images,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )


def _check_choices(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise InputError(
            f"validate: {what} must be among {', '.join(known)}, got {', '.join(unknown) or 'none'}"
        )
