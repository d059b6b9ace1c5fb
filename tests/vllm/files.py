"""The simplest connector there is, to measure beside: a file for each block of vLLM's, in a folder of a file system in memory."""

import os
from dataclasses import dataclass, field

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.v1.metrics.cache_hit_source import CacheHitSource


@dataclass
class Orders(KVConnectorMetadata):
    loads: list = field(default_factory=list)
    saves: list = field(default_factory=list)


class FilesConnector(KVConnectorBase_V1, SupportsHMA):
    """Checks nothing, survives nothing."""

    _cache_hit_source = CacheHitSource.DISK

    def __init__(self, vllm_config, role, kv_cache_config):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self.folder = self._kv_transfer_config.get_from_extra_config("folder", "")
        os.makedirs(self.folder, exist_ok=True)
        self.size = vllm_config.cache_config.block_size
        self.requests, self.external, self.saved = {}, {}, {}

    def path(self, key):
        return os.path.join(self.folder, key.hex())

    def register_kv_caches(self, kv_caches):
        self.tensors = list(kv_caches.values())

    def start_load_kv(self, forward_context, **kwargs):
        for block, key in self._get_connector_metadata().loads:
            with open(self.path(key), "rb") as file:
                for tensor in self.tensors:
                    file.readinto(memoryview(tensor[block].view(torch.uint8).numpy()).cast("B"))

    def wait_for_layer_load(self, layer_name):
        pass

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    def wait_for_save(self):
        for block, key in self._get_connector_metadata().saves:
            with open(self.path(key) + ".new", "wb") as file:
                for tensor in self.tensors:
                    file.write(memoryview(tensor[block].view(torch.uint8).numpy()).cast("B"))
            os.rename(self.path(key) + ".new", self.path(key))

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        first, most = num_computed_tokens // self.size, (request.num_tokens - 1) // self.size
        end = first
        while end < most and os.path.exists(self.path(request.block_hashes[end])):
            end += 1
        return (end - first) * self.size, False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        self.requests[request.request_id] = request
        self.external[request.request_id] = num_external_tokens

    def build_connector_meta(self, scheduler_output):
        orders = Orders()
        for new in scheduler_output.scheduled_new_reqs:
            request, table = self.requests[new.req_id], new.block_ids[0]
            first = (new.num_computed_tokens - self.external[new.req_id]) // self.size
            done = new.num_computed_tokens // self.size
            end = (new.num_computed_tokens + scheduler_output.num_scheduled_tokens[new.req_id]) // self.size
            orders.loads += [(table[block], request.block_hashes[block]) for block in range(first, done)]
            orders.saves += [(table[block], request.block_hashes[block]) for block in range(done, end)]
        return orders

    def request_finished_all_groups(self, request, block_ids):
        self.requests.pop(request.request_id, None)
        return False, None
