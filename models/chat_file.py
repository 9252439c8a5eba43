"""Record of a checkpoint's prompts in its bundle, which has another name and maybe another tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from longllava_trt.core.errors import ConfigError
from longllava_trt.core.json_file import read_json_object

__all__ = ["CHAT_FILE", "ChatFile"]

CHAT_FILE = "chat_format.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFile:
    """Content of `chat_format.json` in a bundle."""

    prompt_format: str
    """Name of the format that the checkpoint chose."""
    piece_prefix: str = ""
    """As in `ChatFormat`."""

    @classmethod
    def read(cls, folder: Path) -> ChatFile | None:
        """Return what a bundle keeps; None in a checkpoint.

        Raises:
            ConfigError: If the file is damaged.
        """
        path = folder / CHAT_FILE
        if not path.is_file():
            return None
        raw = read_json_object(path, whose="a bundle carries it")
        if raw.keys() != set(cls.__slots__) or not all(isinstance(v, str) for v in raw.values()):
            raise ConfigError(
                f"{path}: must have the texts {', '.join(cls.__slots__)}, got {raw}; export the bundle again"
            )
        return cls(**raw)

    def write(self, folder: Path) -> None:
        """Write the file."""
        text = json.dumps(asdict(self), indent=2)
        (folder / CHAT_FILE).write_text(text + "\n", encoding="utf-8")
