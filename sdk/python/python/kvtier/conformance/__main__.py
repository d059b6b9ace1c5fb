"""`python -m kvtier.conformance my_plugin:Connector`: runs a connector through all scenarios; exit code 0 when it conforms, 1 when not."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from . import stubs
from .checks import SCENARIOS, check
from .findings import RULES


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m kvtier.conformance", description="Checks a vLLM connector against a simulated engine, without vLLM.")
    parser.add_argument("connector", nargs="?", help="module:Class, a KVConnectorBase_V1")
    parser.add_argument("--extra", default="{}", help="kv_connector_extra_config as JSON")
    parser.add_argument("--seeds", type=int, default=3, help="streams of requests to try (default 3)")
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="only this scenario; may be given several times")
    parser.add_argument("--rules", action="store_true", help="list what is checked")
    said = parser.parse_args(arguments)
    if said.rules:
        for rule, meaning in RULES.items():
            print(f"{rule:20} {meaning}")
        return 0
    if not said.connector or ":" not in said.connector:
        parser.error("name the connector as module:Class")
    module, _, name = said.connector.partition(":")
    sys.path.insert(0, "")
    with stubs.installed():
        make = getattr(importlib.import_module(module), name)
        broken = 0
        for seed in range(1, said.seeds + 1):
            for scenario, findings in check(make, json.loads(said.extra), seed, said.only).items():
                print(f"seed {seed}  {scenario:10} {'conforms' if not findings.found else ', '.join(sorted(findings.rules()))}")
                for finding in findings.firsts():
                    print(f"    {finding}")
                broken += bool(findings.found)
    print("conforms" if not broken else f"does not conform: {broken} scenarios failed")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
