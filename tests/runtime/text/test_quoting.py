"""Marks around users' texts: they are found again whatever the text holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longllava_trt.runtime.text.quoting import quote, segments, unquote

ANY = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\ufdd0\ufdd1\ufdd2\ufdd3"), max_size=12
)
OURS = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\ufdd1\ufdd2"), max_size=12)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(parts=st.lists(st.tuples(OURS, ANY), max_size=5))
def test_every_part_is_found_again(parts: list[tuple[str, str]]) -> None:
    prompt = "".join(ours + quote(user) for ours, user in parts)
    assert unquote(prompt) == "".join(ours + user for ours, user in parts)
    assert [s.text for s in segments(prompt) if s.is_user] == [u for _, u in parts if u]
    for part in segments(prompt):
        if not part.is_user:
            assert prompt[part.begin : part.begin + len(part.text)] == part.text


@pytest.mark.parametrize("text", ["", "a", "</s>"])
def test_a_prompt_without_marks_is_ours(text: str) -> None:
    assert [(s.text, s.is_user, s.begin) for s in segments(text)] == (
        [(text, False, 0)] if text else []
    )


def test_no_text_has_no_marks() -> None:
    assert quote("") == ""
