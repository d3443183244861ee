"""Which base model a data folder was begun with: `base.json` there, read without the libraries that load a model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from optimizer.errors import ConfigError
from optimizer.files import write_whole

PIN_FILE = "base.json"


class Pin(msgspec.Struct, frozen=True):
    """The choice, made once. `model` is a Hugging Face name or folder, None the tiny model; `digest` names the files'
    content."""

    model: str | None
    digest: str


def read_pin(data: Path) -> Pin | None:
    """The data folder's choice; None where none has been made. Raises ConfigError for a file that is damaged."""
    file = data / PIN_FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=Pin)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: can't be read ({error}); put it back, or remove it and start the learner again with the model "
            "that this data folder was begun with"
        ) from error


def write_pin(data: Path, pin: Pin) -> None:
    """Make the choice: whole or not at all, also where the machine loses its power."""
    write_whole(data / PIN_FILE, msgspec.json.encode(pin))
