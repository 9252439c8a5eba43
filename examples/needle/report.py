"""Results of a needle test: one row a trial, and their summary."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["NeedleReport", "Trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One question about one haystack."""

    seed: int
    num_images: int
    depth: float
    """Of the needle: 0 is the first picture, 1 the last."""
    position: int
    """Of the needle, counted from 0."""
    expected: str
    answer: str
    """Answer of the bundle."""
    is_right: bool
    prompt_tokens: int
    seconds: float
    """From pictures to answer."""
    reference_answer: str | None = None
    """Answer of the reference, if it was asked."""
    is_same: bool | None = None
    """Whether the reference gave the very same tokens."""


@dataclass(frozen=True, slots=True)
class NeedleReport:
    """All trials, by seed, number of images and depth."""

    trials: tuple[Trial, ...]

    @property
    def image_counts(self) -> tuple[int, ...]:
        """Numbers of images, ascending."""
        return tuple(sorted({trial.num_images for trial in self.trials}))

    @property
    def depths(self) -> tuple[float, ...]:
        """Depths, ascending."""
        return tuple(sorted({trial.depth for trial in self.trials}))

    def cell(self, num_images: int, depth: float) -> tuple[int, int]:
        """Return how many trials of a cell were right, and how many there are."""
        cell = [t.is_right for t in self.trials if (t.num_images, t.depth) == (num_images, depth)]
        return sum(cell), len(cell)

    def column(self, seed: int, num_images: int) -> tuple[int, int]:
        """Return the same of a seed's trials with this number of images."""
        trials = [t for t in self.trials if (t.seed, t.num_images) == (seed, num_images)]
        return sum(t.is_right for t in trials), len(trials)

    @property
    def differing(self) -> tuple[Trial, ...]:
        """Trials in which the reference said something else."""
        return tuple(trial for trial in self.trials if trial.is_same is False)

    @property
    def passed(self) -> bool:
        """Whether 9 of 10 are right for each seed and number of images, and no answer differs from the reference's."""
        columns = {(trial.seed, trial.num_images) for trial in self.trials}
        enough = all(10 * right >= 9 * of for right, of in (self.column(*key) for key in columns))
        return bool(columns) and enough and not self.differing

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"passed": self.passed, "trials": [asdict(trial) for trial in self.trials]}

    def lines(self) -> list[str]:
        """Return the table for people: a row a depth, a column a number of images; then what went wrong."""
        counts = self.image_counts
        table = ["depth  " + "".join(f"{count:>8}" for count in counts) + "  images"]
        for depth in self.depths:
            cells = ("{}/{}".format(*self.cell(count, depth)) for count in counts)
            table.append(f"{depth:5.0%}  " + "".join(f"{cell:>8}" for cell in cells))
        table += [_complaint(t) for t in self.trials if not t.is_right or t.is_same is False]
        right = sum(trial.is_right for trial in self.trials)
        table.append(f"{right} of {len(self.trials)} right" + self._agreement())
        return table

    def _agreement(self) -> str:
        asked = [trial for trial in self.trials if trial.is_same is not None]
        same = len(asked) - len(self.differing)
        return f", {same} of {len(asked)} answers the reference's" if asked else ""


def _complaint(trial: Trial) -> str:
    text = (
        f"seed {trial.seed}, {trial.num_images} images, depth {trial.depth:.0%}: "
        f"expected '{trial.expected}', got '{trial.answer}'"
    )
    if trial.is_same is False:
        text += f", and '{trial.reference_answer}' from the reference"
    return text
