"""llama-cpp-python with kvtier, in processes of its own: `python session.py MODEL.gguf FOLDER`. A prompt of 4,000 tokens is computed in one process and restored in
another from the disk, beside llama.cpp's own state in a file: `save_state()` and `load_state()` are in the seconds of both.

The environment has llama-cpp-python, built by hand, and the installed kvtier.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vllm"))

from rig import Daemon  # noqa: E402

TOKENS = 4000
NEW = 24
CONTEXT = 4608


def timed(owner: type, name: str) -> list[float]:
    """From now on, the seconds of each call of a method."""
    method, seconds = getattr(owner, name), []

    def measured(self, *arguments):
        begin = time.perf_counter()
        try:
            return method(self, *arguments)
        finally:
            seconds.append(time.perf_counter() - begin)

    setattr(owner, name, measured)
    return seconds


def child(model: str, socket: str, own: str, is_first: bool) -> None:
    """Generates, and prints what came of it."""
    from llama_cpp import Llama

    from kvtier.llama_cpp import KvtierCache

    def opened() -> Llama:
        return Llama(model_path=model, n_ctx=CONTEXT, n_threads=2, seed=1, verbose=False)

    def ask(llama: Llama) -> tuple[list[int], float]:
        begin = time.perf_counter()
        answer = llama.create_completion(prompt, max_tokens=NEW, temperature=0, seed=1)
        return llama.tokenize(answer["choices"][0]["text"].encode(), add_bos=False), time.perf_counter() - begin

    llama = opened()
    (document,) = (Path(__file__).resolve().parents[2] / "cli" / "assets").glob("*.txt")
    prompt = llama.tokenize(document.read_bytes()[: 8 * TOKENS])[:TOKENS]
    told: dict = {"prompt": len(prompt)}
    if is_first:
        told["plain"], told["plain_seconds"] = ask(llama)
        # Whoever goes on from a state evaluates the prompt's last token alone, and llama.cpp's sums depend on how many tokens it evaluates at once: what a
        # restored state must give is what the same state gives in memory.
        told["again"], _ = ask(llama)
        told["own_save_seconds"], told["state_bytes"] = save_own(llama, own)
        told["own_bytes"] = os.path.getsize(own)
        llama = opened()
    cache = KvtierCache(llama, socket=socket)
    told["known"] = prompt in cache
    if not is_first:
        # The first to read it reads it from the disk; completing reads it again, from memory, and gives it to llama.cpp.
        begin = time.perf_counter()
        state = cache[prompt]
        told["fetch_seconds"] = time.perf_counter() - begin
        told["restored"] = Llama.longest_token_prefix(state.input_ids.tolist(), prompt)
    llama.set_cache(cache)
    made, stored, given = timed(Llama, "save_state"), timed(KvtierCache, "__setitem__"), timed(Llama, "load_state")
    told["tokens"], told["seconds"] = ask(llama)
    told["save_seconds"], told["stored_bytes"] = sum(made) + sum(stored), cache.cache_size
    if not is_first:
        told["load_seconds"] = told["fetch_seconds"] + sum(given)
    stranger = KvtierCache(llama, socket=socket, salt="other")
    told["stranger"] = prompt in stranger
    if not is_first:
        llama.close()
        llama = opened()
        told["own_load_seconds"] = load_own(llama, own)
        told["own_tokens"], told["own_seconds"] = ask(llama)
    print(json.dumps(told))


def save_own(llama, path: str) -> tuple[float, int]:
    """llama-cpp-python's way without a cache: the state in a file. Returns seconds, without waiting for the disk, and the bytes that llama.cpp gave."""
    begin = time.perf_counter()
    state = llama.save_state()
    with open(path, "wb") as file:
        pickle.dump(state, file)
        file.flush()
        seconds = time.perf_counter() - begin
        # Whoever reads it reads it from the disk.
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return seconds, state.llama_state_size


def load_own(llama, path: str) -> float:
    """Seconds from the file to a context that goes on from there."""
    begin = time.perf_counter()
    with open(path, "rb") as file:
        llama.load_state(pickle.load(file))
    return time.perf_counter() - begin


def table(first: dict, second: dict) -> str:
    """What it cost to keep a prompt's state: from the context into the daemon or the file, and from the disk into another process's context."""
    rows = [
        ("kvtier", first["stored_bytes"], first["save_seconds"], second["load_seconds"]),
        ("llama.cpp's own, in a file", first["own_bytes"], first["own_save_seconds"], second["own_load_seconds"]),
    ]
    lines = [f"| {name} | {size} | {save:.3f} | {load:.3f} |" for name, size, save, load in rows]
    return "\n".join(["| | bytes | s to save | s to load, from the disk |", "|---|---|---|---|", *lines])


def main() -> int:
    model, folder = sys.argv[1], Path(sys.argv[2])
    # What an earlier run has left would be found.
    shutil.rmtree(folder / "llama", ignore_errors=True)
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
        first["plain"] == first["tokens"]
        and first["again"] == second["tokens"] == second["own_tokens"]
        and not first["known"]
        and second["known"]
        and not second["stranger"]
        and second["restored"] >= TOKENS - 1
        and len(set(first["plain"])) > 4
    )
    print(f"llama-cpp-python: {'holds' if holds else 'FAILS'}")
    print(table(first, second))
    print(json.dumps({"first": first, "second": second}, indent=1))
    return 0 if holds else 1


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5] == "1")
    else:
        sys.exit(main())
