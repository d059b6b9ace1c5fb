"""llama-cpp-python with kvtier, in processes of its own: `python session.py MODEL.gguf FOLDER`. A prompt of 4,000 tokens is computed in one process and restored in
another from the disk, beside llama.cpp's own state in a file.

The environment has llama-cpp-python, built by hand, and the installed kvtier.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vllm"))

from rig import Daemon  # noqa: E402

TOKENS = 4000
NEW = 24
CONTEXT = 4608


def child(model: str, socket: str, own: str, is_first: bool) -> None:
    """Generates, and prints what came of it."""
    from llama_cpp import Llama

    from kvtier.llama_cpp import KvtierCache

    def opened() -> Llama:
        return Llama(model_path=model, n_ctx=CONTEXT, n_threads=2, seed=1, verbose=False)

    llama = opened()
    (document,) = (Path(__file__).resolve().parents[2] / "cli" / "assets").glob("*.txt")
    prompt = llama.tokenize(document.read_bytes()[: 8 * TOKENS])[:TOKENS]

    def ask() -> tuple[list[int], float]:
        begin = time.perf_counter()
        answer = llama.create_completion(prompt, max_tokens=NEW, temperature=0, seed=1)
        return llama.tokenize(answer["choices"][0]["text"].encode(), add_bos=False), time.perf_counter() - begin

    told: dict = {"prompt": len(prompt)}
    if is_first:
        told["plain"], told["plain_seconds"] = ask()
        state = llama.save_state()
        begin = time.perf_counter()
        with open(own, "wb") as file:
            pickle.dump(state, file)
        told["own_save_seconds"], told["own_bytes"] = time.perf_counter() - begin, os.path.getsize(own)
        told["state_bytes"] = state.llama_state_size
        llama = opened()
    cache = KvtierCache(llama, socket=socket)
    told["known"] = prompt in cache
    llama.set_cache(cache)
    set_item, saves = KvtierCache.__setitem__, []

    def timed(self, key, value):
        begin = time.perf_counter()
        set_item(self, key, value)
        saves.append(time.perf_counter() - begin)

    KvtierCache.__setitem__ = timed
    if not is_first:
        begin = time.perf_counter()
        state = cache[prompt]
        told["load_seconds"] = time.perf_counter() - begin
        told["restored"] = Llama.longest_token_prefix(state.input_ids.tolist(), prompt)
        begin = time.perf_counter()
        with open(own, "rb") as file:
            pickle.load(file)
        told["own_load_seconds"] = time.perf_counter() - begin
    told["tokens"], told["seconds"] = ask()
    told["save_seconds"], told["stored_bytes"] = sum(saves), cache.cache_size
    stranger = KvtierCache(llama, socket=socket, salt="other")
    told["stranger"] = prompt in stranger
    print(json.dumps(told))


def main() -> int:
    model, folder = sys.argv[1], Path(sys.argv[2])
    daemon = Daemon(folder / "llama", host="1GiB")
    daemon.arguments[-1] = "1GiB"
    daemon.start()
    answers = []
    try:
        for is_first in (True, False):
            words = [sys.executable, __file__, "--child", model, str(daemon.socket), str(folder / "own-state"), str(int(is_first))]
            told = subprocess.run(words, capture_output=True, text=True)
            if told.returncode:
                print(told.stderr[-3000:])
                return 1
            answers.append(json.loads(told.stdout.splitlines()[-1]))
            daemon.stop()
            daemon.start()
    finally:
        daemon.stop()
        (folder / "own-state").unlink(missing_ok=True)
    first, second = answers
    holds = (
        first["plain"] == first["tokens"] == second["tokens"]
        and not first["known"]
        and second["known"]
        and not second["stranger"]
        and second["restored"] >= TOKENS - 1
        and len(set(first["plain"])) > 4
    )
    print(f"llama-cpp-python: {'holds' if holds else 'FAILS'}")
    print(json.dumps({"first": first, "second": second}, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] == "1")
    else:
        sys.exit(main())
