"""Contestants take turns, so that a busy moment of the machine hits all alike, and begin rested.

Thread pools spin on for milliseconds after their last task, on the cores that the next contestant wants.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["take_turns"]

_Contestant = TypeVar("_Contestant")
_REST_S = 0.1


def take_turns(contestants: Iterable[_Contestant], *, rounds: int) -> Iterator[_Contestant]:
    """Yield every contestant once a round."""
    everybody = list(contestants)
    for _ in range(rounds):
        for contestant in everybody:
            time.sleep(_REST_S)
            yield contestant
