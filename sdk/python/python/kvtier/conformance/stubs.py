"""`vllm` without vLLM: modules with the names that connectors import from, for as long as a context lasts."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from . import interface

VERSION = "0.32.0+conformance"

CLASSES: dict[str, tuple[str, ...]] = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base": (
        "KVConnectorBase_V1",
        "KVConnectorHandshakeMetadata",
        "KVConnectorMetadata",
        "KVConnectorRole",
        "KVConnectorTransferResults",
        "KVConnectorWorkerMetadata",
        "SupportsHMA",
        "supports_hma",
    ),
    "vllm.distributed.kv_transfer.kv_connector.v1": ("KVConnectorBase_V1", "KVConnectorRole", "SupportsHMA", "supports_hma"),
    "vllm.v1.metrics.cache_hit_source": ("CacheHitSource",),
    "vllm.v1.outputs": ("KVConnectorOutput",),
    "vllm.v1.core.sched.output": ("CachedRequestData", "KVConnectorBlockState", "NewRequestData", "SchedulerOutput"),
}
"""What is real enough to be used."""

NAMES: dict[str, tuple[str, ...]] = {
    "vllm.config": ("VllmConfig", "KVTransferConfig"),
    "vllm.forward_context": ("ForwardContext",),
    "vllm.v1.request": ("Request",),
    "vllm.v1.core.kv_cache_manager": ("KVCacheBlocks", "KVCacheManager"),
    "vllm.v1.core.block_pool": ("BlockPool",),
    "vllm.v1.kv_cache_interface": ("KVCacheConfig",),
    "vllm.v1.attention.backend": ("AttentionBackend", "AttentionMetadata"),
    "vllm.distributed.kv_events": ("KVCacheEvent",),
}
"""What only has to be there, for annotations."""


@contextmanager
def installed() -> Iterator[None]:
    """`import vllm` finds the stubs. Whatever was imported as vllm before is back afterwards."""
    before = {name: module for name, module in sys.modules.items() if name == "vllm" or name.startswith("vllm.")}
    for name in before:
        del sys.modules[name]
    for name, names in {**NAMES, **CLASSES}.items():
        found = module(name)
        for entry in names:
            setattr(found, entry, getattr(interface, entry, None) or type(entry, (), {}))
    module("vllm").__version__ = VERSION  # type: ignore[attr-defined]
    module("vllm.logger").init_logger = logging.getLogger  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
            del sys.modules[name]
        sys.modules.update(before)


def module(name: str) -> types.ModuleType:
    """The module of that name, made with those above it where it is not there."""
    if name in sys.modules:
        return sys.modules[name]
    made = types.ModuleType(name, "A stand-in of kvtier.conformance.")
    made.__path__ = []
    sys.modules[name] = made
    above, _, last = name.rpartition(".")
    if above:
        setattr(module(above), last, made)
    return made
