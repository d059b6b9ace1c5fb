"""The connector interface in a wheel of vLLM that need not be installed, read from its sources: `python sources.py WHEEL` prints it as JSON.

What `interface.py` says of an installed one; of a version that has no build for the CPU it is all that can be had. `sdk/python/tests/units` has what was read of 0.33.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

PACKAGE = "vllm"
BASE = "distributed/kv_transfer/kv_connector/v1/base.py"
OUTPUT = "v1/core/sched/output.py"
CLASSES = {"KVConnectorBase_V1": BASE, "SupportsHMA": BASE, "KVConnectorWorkerMetadata": BASE}
FIELDS = {
    "KVConnectorTransferResults": BASE,
    "KVConnectorOutput": "v1/outputs.py",
    "SchedulerOutput": OUTPUT,
    "NewRequestData": OUTPUT,
    "CachedRequestData": OUTPUT,
    "KVConnectorBlockState": OUTPUT,
}
SOURCES = ("CacheHitSource", "v1/metrics/cache_hit_source.py")


def parameters(function: ast.FunctionDef) -> list[list]:
    """(name, kind, whether there is a default) of each, as `inspect` names the kinds."""
    given, found = function.args, []
    positional = [(each, "POSITIONAL_ONLY") for each in given.posonlyargs] + [(each, "POSITIONAL_OR_KEYWORD") for each in given.args]
    first_default = len(positional) - len(given.defaults)
    found += [[each.arg, kind, at >= first_default] for at, (each, kind) in enumerate(positional)]
    if given.vararg:
        found.append([given.vararg.arg, "VAR_POSITIONAL", False])
    found += [[each.arg, "KEYWORD_ONLY", default is not None] for each, default in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg:
        found.append([given.kwarg.arg, "VAR_KEYWORD", False])
    return found


def signatures(of: ast.ClassDef) -> dict:
    """As `signatures` of the conformance kit's tests."""
    found: dict = {}
    for member in of.body:
        if isinstance(member, ast.FunctionDef) and (not member.name.startswith("_") or member.name == "__init__"):
            decorators = {name.id for name in member.decorator_list if isinstance(name, ast.Name)}
            found[member.name] = "property" if "property" in decorators else parameters(member)
    return dict(sorted(found.items()))


def fields(of: ast.ClassDef) -> list[str]:
    """Fields of a dataclass that inherits none."""
    return [member.target.id for member in of.body if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name)]


def read(wheel: Path) -> dict:
    """The interface. Errors: `KeyError` with the name of a class that is not where it was."""
    with zipfile.ZipFile(wheel) as files:

        def named(name: str, path: str) -> ast.ClassDef:
            tree = ast.parse(files.read(f"{PACKAGE}/{path}"))
            return {each.name: each for each in tree.body if isinstance(each, ast.ClassDef)}[name]

        values = [member for member in named(*SOURCES).body if isinstance(member, ast.Assign)]
        return {
            "version": wheel.name.split("-")[1],
            "classes": {name: signatures(named(name, path)) for name, path in CLASSES.items()},
            "fields": {name: fields(named(name, path)) for name, path in FIELDS.items()},
            "sources": {member.targets[0].id: ast.literal_eval(member.value) for member in values},
        }


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1])), indent=1))
