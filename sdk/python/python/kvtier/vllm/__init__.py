"""vLLM's connector. `KvtierConnector` is found by its name once this package is installed (`vllm.general_plugins`), or with
`kv_connector_module_path="kvtier.vllm"`.

Importing this package imports neither vLLM nor the extension module; using `KvtierConnector` does.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KvtierConnector", "register"]

NAME = "KvtierConnector"


def register() -> None:
    """Tells vLLM's factory of connectors where `KvtierConnector` is. Called by vLLM's plugin loader in each of its processes."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(NAME, "kvtier.vllm.connector", NAME)


def __getattr__(name: str) -> Any:
    if name == NAME:
        from .connector import KvtierConnector

        return KvtierConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
