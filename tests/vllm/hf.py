"""transformers with kvtier, in processes of its own: `python hf.py FOLDER`. Greedy tokens with stored prefixes equal those without."""

import json
import random
import subprocess
import sys
from pathlib import Path

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


def main() -> int:
    folder = Path(sys.argv[1])
    model = str(folder / "models" / "tiny")
    daemon = Daemon(folder / "hf").start()
    try:
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
    return 0 if holds else 1


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
