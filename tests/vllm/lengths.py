"""What a hit is worth by the length of the prompt: `python lengths.py FOLDER`. A table of the time to the first token of prompts that nobody has computed, and of the
same prompts when kvtier has them, in one vLLM with the toy model (2 KiB of KV a token), medians of seven prompts of each length.

Run in the environment of `cargo xtask vllm`.
"""

import statistics
import sys
from pathlib import Path

import toy
from rig import Daemon, Engine

LENGTHS = (33, 65, 129, 257, 513, 1025, 2049)
ROUNDS = 7
BLOCK = 32


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    model = folder / "models" / "tiny"
    if not (model / "config.json").is_file():
        toy.build(model, "tiny")
    daemon = Daemon(folder / "lengths").start()
    try:
        prompts = [{"seed": 1000 * number + tokens, "tokens": tokens} for number in range(ROUNDS + 1) for tokens in LENGTHS]
        script = [{"op": "generate", "prompts": prompts, "count": 1}, {"op": "reset"}, {"op": "generate", "prompts": prompts, "count": 1}]
        cold, _, hit = Engine(folder, "lengths", str(model), {"kvtier.socket": str(daemon.socket)}, script).finish()
    finally:
        daemon.stop()
    print("| tokens | from kvtier | computed, ms | hit, ms |\n|---|---|---|---|")
    for at, tokens in enumerate(LENGTHS):
        # The first prompts warm everything up.
        rows = [(cold[round * len(LENGTHS) + at], hit[round * len(LENGTHS) + at]) for round in range(1, ROUNDS + 1)]
        expected = (tokens - 1) // BLOCK * BLOCK
        found = {answer["cached"] for _, answer in rows}
        if found != {expected} or any(answer["cached"] for answer, _ in rows):
            print(f"not measured: {found} of {expected} tokens cached, or some before they were computed")
            return 1
        times = [statistics.median(answer["seconds"] for answer in side) * 1e3 for side in zip(*rows)]
        print(f"| {tokens} | {expected} | {times[0]:.1f} | {times[1]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
