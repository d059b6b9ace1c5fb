"""What an operator may set, in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "kvtier."


@dataclass(frozen=True)
class Settings:
    """Settings of the connector; names in the configuration begin with `kvtier.`."""

    socket: str | None = None
    """Path of the daemon's socket; else `KVTIER_SOCKET`, else the daemon's default."""
    chunk_factor: int = 1
    """Engine blocks in a stored block."""
    load_async: bool = False
    """Load between steps, while other requests go on, instead of within the step."""
    layerwise: bool = False
    """Load and save layer by layer during the forward pass."""
    salt: str | None = None
    """The tenant whose blocks these are."""
    model_id: str | None = None
    """What the weights are, where their files are not to be read."""
    deadline_ms: int = 2000
    """The most that a call to the daemon may take."""
    form: str | None = None
    """A lossy form to store blocks in; else their bytes as they are."""
    layout: Mapping[str, Any] | None = None
    """Where keys and values are in a block: goes with `form`."""


def parse(extra: Mapping[str, Any]) -> Settings:
    """Settings from the configuration. Errors: `ValueError` for a name that there is not, or a value that it does not take."""
    read: dict[str, Any] = {}
    for name, value in extra.items():
        if not name.startswith(PREFIX):
            continue
        field = name.removeprefix(PREFIX)
        if field not in TAKES:
            raise ValueError(f"there is no setting {name}; there are {', '.join(PREFIX + known for known in TAKES)}")
        if value is not None:
            read[field] = TAKES[field](name, value)
    if ("form" in read) != ("layout" in read):
        raise ValueError(f"{PREFIX}form and {PREFIX}layout go together: a form needs to know where keys and values are")
    return Settings(**read)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} takes text, not {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} takes true or false, not {value!r}")
    return value


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} takes a table, not {value!r}")
    return value


def number(least: int, most: int) -> Callable[[str, Any], int]:
    def take(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name} takes a number from {least} to {most}, not {value!r}")
        return value

    return take


TAKES: dict[str, Callable[[str, Any], Any]] = {
    "socket": text,
    "chunk_factor": number(1, 1024),
    "load_async": flag,
    "layerwise": flag,
    "salt": text,
    "model_id": text,
    "deadline_ms": number(1, 86_400_000),
    "form": text,
    "layout": mapping,
}
