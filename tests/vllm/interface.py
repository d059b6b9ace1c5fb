"""Prints the connector interface of the installed vLLM as JSON, or with `--check` compares it with the recorded one."""

import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sdk" / "python" / "tests"))

from units.test_conformance import REAL, signatures  # noqa: E402

import vllm  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1 import base  # noqa: E402
from vllm.v1 import outputs  # noqa: E402
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl  # noqa: E402
from vllm.v1.core.sched import output  # noqa: E402
from vllm.v1.metrics.cache_hit_source import CacheHitSource  # noqa: E402

CLASSES = [base.KVConnectorBase_V1, base.SupportsHMA, base.KVConnectorWorkerMetadata]
FIELDS = [
    base.KVConnectorTransferResults,
    outputs.KVConnectorOutput,
    output.SchedulerOutput,
    output.NewRequestData,
    output.CachedRequestData,
    output.KVConnectorBlockState,
]

found = {
    "version": vllm.__version__,
    "classes": {each.__name__: signatures(each) for each in CLASSES},
    "fields": {each.__name__: [field.name for field in dataclasses.fields(each)] for each in FIELDS},
    "sources": {source.name: source.value for source in CacheHitSource},
    # What lossy forms are checked with.
    "writes": signatures(CPUAttentionBackendImpl)["do_kv_cache_update"],
}
if "--check" in sys.argv:
    recorded = json.loads(REAL.read_text())
    differences = [name for name in ("classes", "fields", "sources", "writes") if recorded[name] != found[name]]
    sys.exit(f"vLLM {vllm.__version__} differs from the recorded {recorded['version']} in {differences}" if differences else 0)
print(json.dumps(found, indent=1))
