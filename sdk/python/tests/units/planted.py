"""Connectors with one mistake each, for the conformance kit to find. Imported with vLLM's stand-ins in place."""

import ctypes
import sys
from types import SimpleNamespace

from kvtier.conformance.request import block_hashes
from kvtier.vllm.connector import KvtierConnector

ours = sys.modules[KvtierConnector.__module__]


class LoadAfterFinish(KvtierConnector):
    """Reports loads between steps as done when they were ordered, and carries them out a step later."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._ordered, self._said = [], set()

    def start_load_kv(self, forward_context, **kwargs):
        for load in self._ordered:
            self._worker.store.load(load.request, load.span, load.rows)
        self._ordered = [load for load in self._get_connector_metadata().orders.loads if load.is_async]
        self._said = {load.request for load in self._ordered}

    def get_finished(self, finished_req_ids):
        return None, self._said


class WrongRank(KvtierConnector):
    """All ranks' blocks have the same key."""

    def register_kv_caches(self, kv_caches):
        right = ours.ranks_of
        ours.ranks_of = lambda parallel: {"tensor": (0, 1), "pipeline": (0, 1)}
        try:
            super().register_kv_caches(kv_caches)
        finally:
            ours.ranks_of = right


class SaltDropped(KvtierConnector):
    """Hashes prompts itself, and forgets the salt."""

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        return super().get_num_new_matched_tokens(self._unsalted(request), num_computed_tokens)

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        super().update_state_after_alloc(self._unsalted(request), blocks, num_external_tokens)

    def _unsalted(self, request):
        hashes = block_hashes(request.all_token_ids, request.block_tokens, None)
        return SimpleNamespace(request_id=request.request_id, num_tokens=request.num_tokens, block_hashes=hashes)


class TokenSliced(KvtierConnector):
    """Leaves the last token of a hit to the engine, and so cuts the last block, as if its tokens lay one after the other."""

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return max(tokens - 1, 0), is_async

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        super().update_state_after_alloc(request, blocks, num_external_tokens and num_external_tokens + 1)

    def start_load_kv(self, forward_context, **kwargs):
        layout = self._worker.layout
        size = layout.block_bytes // layout.block_tokens
        for load in self._get_connector_metadata().orders.loads:
            rest = [layout.address(layer, load.rows[-1][-1]) + layout.block_bytes - size for layer in range(len(layout.slabs))]
            kept = [ctypes.string_at(address, size) for address in rest]
            self._worker.store.load(load.request, load.span, load.rows)
            for address, data in zip(rest, kept):
                ctypes.memmove(address, data, size)


class ErrorLate(KvtierConnector):
    """Reports failed blocks in the step after the one that used them."""

    _late: set = set()

    def get_block_ids_with_load_errors(self):
        late, self._late = self._late, super().get_block_ids_with_load_errors()
        return late


class StoresTooEarly(KvtierConnector):
    """Saves a step's blocks before the step has computed them."""

    def start_load_kv(self, forward_context, **kwargs):
        super().start_load_kv(forward_context, **kwargs)
        self._worker.end()


class BlindToFailures(KvtierConnector):
    """Never reports a failed load."""

    def get_block_ids_with_load_errors(self):
        super().get_block_ids_with_load_errors()
        return set()


class SavesGarbage(KvtierConnector):
    """Saves what was computed from a failed load."""

    def wait_for_save(self):
        self._worker._end_loads()
        self._worker._failed.clear()
        super().wait_for_save()


class Forgetful(KvtierConnector):
    """Does not say that loads between steps have ended."""

    def get_finished(self, finished_req_ids):
        return None, None


class Greedy(KvtierConnector):
    """Promises the last token, too."""

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return (request.num_tokens - num_computed_tokens if tokens else 0), is_async


class Scribbler(KvtierConnector):
    """Writes the local part of a stored block as well."""

    def start_load_kv(self, forward_context, **kwargs):
        super().start_load_kv(forward_context, **kwargs)
        layout = self._worker.layout
        if self._get_connector_metadata().orders.loads:
            for block in range(1, layout.blocks):
                ctypes.memmove(layout.address(0, block), bytes(layout.block_bytes), layout.block_bytes)


class Idle(KvtierConnector):
    """Never finds anything."""

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        super().get_num_new_matched_tokens(request, num_computed_tokens)
        return 0, False


class Breaks(KvtierConnector):
    """Raises when the store does not answer."""

    def wait_for_save(self):
        if not self._stores[0].client.connected:
            raise RuntimeError("no daemon")
        super().wait_for_save()
