"""Families by the words that config.json may have for them."""

from __future__ import annotations

from longllava_trt.models.preset_names import FORMAT_NAMES, PRESET_NAMES
from longllava_trt.models.registry import family_of, find_family, find_preset, preset_names


def test_names_for_the_help_are_those_of_the_families() -> None:
    assert preset_names() == PRESET_NAMES
    formats = {name for p in PRESET_NAMES for name in family_of(find_preset(p)).formats}
    assert formats == set(FORMAT_NAMES)


def test_one_family_has_several_words() -> None:
    llava = find_family("llava")
    assert llava.model_types == ("llava_llama", "llava", "llava_mistral", "llava_next")
    assert {find_family(word).title for word in llava.model_types} == {"LLaVA"}
    assert find_family("jamba").title == "Jamba"
