"""kvtier: KV blocks of any engine, shared between processes and kept over restarts.

A client of the daemon (`Client`), and the daemon itself (`serve`, `python -m kvtier serve`). See docs/sdk-python.md.
Importing this imports neither numpy nor torch, and no network is touched. The extension module is imported when one of its names is first used:
`kvtier.conformance` and what plans in `kvtier.vllm` run without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._kvtier import (
        Client,
        Error,
        Found,
        Lease,
        Leases,
        Lossy,
        Manifest,
        Opaque,
        Place,
        Reservations,
        Slabs,
        __version__,
    )

    Loaded = Found

__all__ = [
    "Client",
    "Error",
    "Found",
    "Lease",
    "Leases",
    "Loaded",
    "Lossy",
    "Manifest",
    "Opaque",
    "Place",
    "Reservations",
    "Slabs",
    "__version__",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _kvtier

    return getattr(_kvtier, "Found" if name == "Loaded" else name)


def serve(args: Sequence[str] | None = None) -> None:
    """Runs the daemon in this process until SIGTERM, SIGINT or a client's drain ends it.

    `args` are the options of `kvtier serve`, such as `["--socket", path]`. Raises `Error` with the code `serve` when it
    cannot start or fails on the way. It takes SIGTERM and SIGINT over for as long as it runs.
    """
    from ._kvtier import Error, _run

    code, message = _run(["serve", *(args or [])])
    if code != 0:
        error = Error(f"failed to serve: {message}" if message else "failed to serve: see the output")
        error.code = "serve"
        raise error
