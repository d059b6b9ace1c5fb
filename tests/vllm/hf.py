"""transformers with kvtier, in processes of its own: `python hf.py FOLDER`. Greedy tokens with stored prefixes equal those without. First, torch's tensors as slabs,
and blocks as torch's tensors where they lie.
"""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy
from rig import Daemon

TOKENS = 700


def child(model_folder: str, socket: str) -> None:
    """Generates without and with the cache, and prints what came of it."""
    import torch
    from transformers import AutoModelForCausalLM

    from kvtier.transformers import PrefixCache

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    rng = random.Random(5)
    prompt = torch.tensor([[rng.randrange(256) for _ in range(TOKENS)]])
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 258}
    plain = model.generate(prompt, **options)[0, TOKENS:].tolist()
    cache = PrefixCache(model, socket=socket)
    _, before = cache.load(prompt[0].tolist())
    cached = cache.generate(prompt, **options)[0, TOKENS:].tolist()
    _, after = cache.load(prompt[0].tolist())
    salted = PrefixCache(model, socket=socket, salt="other")
    _, stranger = salted.load(prompt[0].tolist())
    print(json.dumps({"plain": plain, "cached": cached, "before": before, "after": after, "stranger": stranger}))


def tensors(socket: str) -> str:
    """Blocks out of bf16 tensors, read where they lie, and into other tensors. Returns what was wrong, or nothing."""
    import torch

    import kvtier

    shape = (4, 2, 16, 64)
    torch.manual_seed(3)
    sources = [torch.randn(shape).to(torch.bfloat16) for _ in range(3)]
    targets = [torch.zeros_like(source) for source in sources]
    nbytes = sources[0][0].nbytes
    manifest = kvtier.Manifest(weights=bytes(32), architecture="tensors", dtype="bf16", block_tokens=16, layers=3, kv_heads=2, head_dim=64)
    keys = [hashlib.sha256(bytes([number])).digest() for number in range(4)]
    with kvtier.Client(socket, manifest=manifest, form=kvtier.Opaque(layer_bytes=nbytes, layout="tensors"), deadline_ms=30_000) as client:
        stored = client.store(keys, kvtier.Slabs(sources, block_bytes=nbytes), [[3], [2], [1], [0]])
        with client.acquire(keys) as leases:
            for lease, block in zip(leases, (3, 2, 1, 0)):
                lent = torch.from_dlpack(lease)
                if lent.data_ptr() != numpy.frombuffer(memoryview(lease), dtype=numpy.uint8).ctypes.data:
                    return f"block {block} was copied"
                if not torch.equal(lent.view(torch.bfloat16).view(3, *shape[1:]), torch.stack([source[block] for source in sources])) or not lease.is_current():
                    return f"block {block} is not what was stored"
                del lent
            found = len(leases)
        # Into other blocks than those that they came from.
        loaded = len(client.load(keys, kvtier.Slabs(targets, block_bytes=nbytes), [[0], [1], [2], [3]]))
    if (stored, found, loaded) != (["inserted"] * 4, 4, 4):
        return f"{stored} stored, {found} leased, {loaded} loaded"
    is_same = all(torch.equal(target, source.flip(0)) for target, source in zip(targets, sources))
    return "" if is_same else "tensors were loaded with something else"


def main() -> int:
    folder = Path(sys.argv[1])
    model = str(folder / "models" / "tiny")
    daemon = Daemon(folder / "hf").start()
    try:
        wrong = tensors(str(daemon.socket))
        print(f"tensors of torch: {f'FAILS: {wrong}' if wrong else 'hold: stored, read where they lie, loaded'}", flush=True)
        answers = []
        for _ in range(2):
            told = subprocess.run([sys.executable, __file__, "--child", model, str(daemon.socket)], capture_output=True, text=True)
            if told.returncode:
                print(told.stderr[-3000:])
                return 1
            answers.append(json.loads(told.stdout.splitlines()[-1]))
            daemon.stop()
            daemon.start()
    finally:
        daemon.stop()
    usable = (TOKENS - 1) // 64 * 64
    first, second = answers
    holds = (
        first["before"] == first["stranger"] == second["stranger"] == 0
        and first["after"] == second["before"] == usable
        and first["plain"] == first["cached"] == second["cached"] == second["plain"]
        and len(set(first["plain"])) > 4
    )
    print(f"transformers: {'holds' if holds else 'FAILS'}: a second process has {second['before']} of {TOKENS} tokens from disk; {answers if not holds else 'tokens equal'}")
    return 0 if holds and not wrong else 1


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
