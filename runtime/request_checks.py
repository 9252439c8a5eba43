"""Checks of a request's values other than images: question, sampling, ids of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longllava_trt.core.errors import InputError
from longllava_trt.runtime.option_checks import is_whole
from longllava_trt.runtime.sampling import SamplingParams

__all__ = ["answer_ids", "limited", "question_text"]


def question_text(query: object) -> str:
    """Return a question; raise an error if it is no text."""
    if not isinstance(query, str):
        raise InputError(f"prompt: expected a text, got {type(query).__name__}")
    return query


def limited(sampling: SamplingParams, max_new_tokens: int | None) -> SamplingParams:
    """Return sampling options, with another token limit if one is given."""
    if not isinstance(sampling, SamplingParams):
        raise InputError(f"sampling: expected SamplingParams, got {type(sampling).__name__}")
    if max_new_tokens is None:
        return sampling
    return replace(sampling, max_new_tokens=max_new_tokens)


def answer_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """Return ids of an answer as a list.

    Raises:
        InputError: If there are no ids, or one is not in the vocabulary.
    """
    try:
        found = [*token_ids]
    except TypeError as err:
        raise InputError(
            f"score: token_ids must be a list of ids, got {type(token_ids).__name__}"
        ) from err
    wrong = [i for i in found if not is_whole(i) or not 0 <= i < vocab_size]
    if wrong or not found:
        raise InputError(
            f"score: token_ids must be ids from 0 to {vocab_size - 1}, at least one, got "
            f"{wrong[0] if wrong else found!r}"
        )
    return [int(i) for i in found]
