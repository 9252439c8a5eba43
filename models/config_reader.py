"""Strict reader of one JSON object in a config.json.

Every key is asked for, or named as harmless; `finish` raises one error that lists every fault and
every key that nobody asked for. A value with a fault reads as its default, so that reading goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from longllava_trt.core.errors import ConfigError

__all__ = ["MADE_BY_TRANSFORMERS", "ConfigReader", "located"]

logger = logging.getLogger(__name__)

MADE_BY_TRANSFORMERS = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id delay_load diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label ignore_index initializer_factor
    initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tokenizer_class top_k top_p torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)
"""Keys that transformers writes into any config.json, and that do not change what a model is."""


class ConfigReader:
    """Reader of one object, which notes the keys that were asked for and all faults.

    Args:
        raw: The object.
        prefix: Its place in the file, such as `text_config.`.
    """

    def __init__(self, raw: Mapping[str, Any], *, prefix: str = "") -> None:
        self._raw, self._prefix = raw, prefix
        self._known: set[str] = set(MADE_BY_TRANSFORMERS)
        self._nested: list[ConfigReader] = []
        self._own_problems: list[str] = []

    def __contains__(self, key: str) -> bool:
        return self._raw.get(key) is not None

    def harmless(self, keys: Iterable[str]) -> None:
        """Accept keys whatever their values."""
        self._known.update(keys)

    def fault(self, text: str) -> None:
        """Note a fault."""
        self._own_problems.append(text)

    def refuse(self, key: str, what: str, found: Any, why: str = "") -> None:
        """Note that a key has not the value that it must have."""
        if found is _MISSING:
            self.fault(f"missing key '{self._prefix}{key}'")
            return
        reason = f" ({why})" if why else ""
        self.fault(f"'{self._prefix}{key}' must be {what}, got {_json(found)}{reason}")

    def value(self, key: str, default: Any = None) -> Any:
        """Return any value; null is the default."""
        self._known.add(key)
        found = self._raw.get(key)
        return default if found is None else found

    def stored(self, key: str, default: Any) -> Any:
        """Return the value as it stands, null too; the default only where the key is absent."""
        self._known.add(key)
        return self._raw.get(key, default)

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number; without a default the key is required."""
        found = self._required(key, default)
        if isinstance(found, bool) or not isinstance(found, int):
            self.refuse(key, "a whole number", found)
        elif found < least:
            self.refuse(key, "positive" if least == 1 else f"{least} or more", found)
        else:
            return found
        return default if default is not None else max(least, 1)

    def real(self, key: str, default: float | None = None) -> float:
        """Return a positive number; without a default the key is required."""
        found = self._required(key, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
            self.refuse(key, "a positive number", found)
            return default if default is not None else 1.0
        return float(found)

    def text(self, key: str, what: str) -> str:
        """Return a text that is not empty; the key is required.

        Args:
            key: The key.
            what: What the text is, for the error.
        """
        found = self._required(key, None)
        if isinstance(found, str) and found:
            return found
        self.refuse(key, what, found)
        return ""

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        found = self.value(key, default)
        if not isinstance(found, bool):
            self.refuse(key, "true or false", found)
            return default
        return found

    def one_of(
        self, key: str, allowed: Iterable[Any], default: Any = None, *, why: str = ""
    ) -> Any:
        """Return one of a few values; without a default the key is required.

        Args:
            key: The key.
            allowed: Values that are supported.
            default: Value if there is none.
            why: What another value would be, for the error.
        """
        options = tuple(allowed)
        found = self._required(key, default)
        if not any(type(found) is type(o) and found == o for o in options):
            self.refuse(key, " or ".join(map(_json, options)), found, why)
            return options[0]
        return found

    def token_ids(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return an id or a list of ids; null says that there is none."""
        found = self.stored(key, list(default))
        ids = found if isinstance(found, list) else [found] * (found is not None)
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
            self.refuse(key, "a token id or a list of them", found)
            return default
        return tuple(ids)

    def absent(self, key: str, *, why: str) -> None:
        """Refuse any value but null, false and an empty list."""
        found = self.value(key)
        if found not in (None, False, []):
            self.refuse(key, "absent", found, why)

    def nested(self, key: str) -> ConfigReader:
        """Return the reader of an object in this one; an empty one if there is none."""
        found = self.value(key, {})
        if not isinstance(found, Mapping):
            self.refuse(key, "an object", found)
            found = {}
        reader = ConfigReader(found, prefix=f"{self._prefix}{key}.")
        self._nested.append(reader)
        return reader

    def finish(self, where: str, *, ignored_keys: Iterable[str] = ()) -> None:
        """Raise `ConfigError` with all faults, and with all keys that nobody asked for.

        Args:
            where: Beginning of the error.
            ignored_keys: Unknown keys to accept, with the names of the objects they are in.
        """
        unknown = [name for reader in self._readers() for name in reader._unknown()]
        ignored = set(ignored_keys) & set(unknown)
        if ignored:
            logger.warning("%s: ignoring %s, as told", where, ", ".join(map(repr, sorted(ignored))))
        problems = [text for reader in self._readers() for text in reader._own_problems]
        problems += [
            f"unknown key '{name}' (its effect on the model is not known to this version)"
            for name in sorted(unknown)
            if name not in ignored
        ]
        if problems:
            raise ConfigError(f"{where}: " + "; ".join(problems))

    def _readers(self) -> Iterator[ConfigReader]:
        yield self
        for reader in self._nested:
            yield from reader._readers()

    def _unknown(self) -> list[str]:
        keys = (k for k, v in self._raw.items() if v is not None and k not in self._known)
        return [self._prefix + key for key in keys]

    def _required(self, key: str, default: Any) -> Any:
        found = self.value(key, default)
        if found is None and key not in self._raw:
            found = _MISSING
        return found


class _Missing:
    """Value of a key that is not there."""


_MISSING = _Missing()


def _json(value: Any) -> str:
    """Write a value as it stands in the file."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put a place in front of a `ConfigError` that has none."""
    try:
        yield
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err
