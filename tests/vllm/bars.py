"""What a hit costs inside vLLM: `python bars.py FOLDER [ROUNDS]`. A toy network with Llama-3-8B's KV (128 KiB a token), a prompt of which 2,048 tokens come from
outside: seconds to the first token, less those of vLLM's own prefix hit in the same process, from kvtier, from LMCache's daemon and from plain files in memory.

Stores: our connector's and the files' rates are of the time for which `wait_for_save` holds the step, until others can find all of it; LMCache's is what its daemon
says of the same tokens, from the moment when their slots were reserved until they are committed, which leaves the reservation out.

The three engines live at the same time and take turns. Bars: at most half of LMCache's time, at most that of the files; stores at least five times as fast as LMCache.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import toy
from rig import Daemon, Engine

TOKENS = 2049
PROMPT = {"seed": 3, "tokens": TOKENS}
BYTES = 2048 * 131072


class Lmcache:
    """LMCache's daemon."""

    def __init__(self, folder: Path) -> None:
        self.port, self.http = 15555, 18080
        self.name = f"kvtier-bars-{os.getpid()}"
        program = Path(sys.executable).with_name("lmcache")
        arguments = ["server", "--l1-size-gb", "1", "--eviction-policy", "LRU", "--supported-transfer-mode", "auto", "--shm-name", self.name]
        arguments += ["--port", str(self.port), "--http-port", str(self.http)]
        self.log = folder / "lmcache.log"
        # It would report its use to its makers.
        environment = {**os.environ, "LMCACHE_TRACK_USAGE": "false", "HF_HUB_OFFLINE": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, env=environment)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for left in Path("/dev/shm").glob(f"{self.name}*"):
            left.unlink()


def main() -> int:
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9
    model = folder / "models" / "wide"
    if not (model / "config.json").is_file():
        toy.build(model, "wide")
    os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    files = Path("/dev/shm") / f"kvtier-bars-files-{os.getpid()}"
    daemon = Daemon(folder / "daemon", host="1GiB", disk=False).start()
    lmcache = Lmcache(folder)
    turns = {name: [str(folder / f"turn-{name}-{number}") for number in range(rounds)] for name in ("kvtier", "files", "lmcache")}
    of = {
        "kvtier": {"connector": {"kvtier.socket": str(daemon.socket)}},
        "files": {"connector": {"folder": str(files)}, "class": "FilesConnector", "module": "files"},
        "lmcache": {
            "connector": {"lmcache.mp.host": "localhost", "lmcache.mp.port": lmcache.port},
            "class": "LMCacheMPConnector",
            "tolerate_numba": True,
        },
    }
    engines = {}
    try:
        for name, given in of.items():
            script = [
                {"op": "time_saves"},
                {"op": "generate", "prompts": [PROMPT], "count": 1},
                {"op": "save_seconds"},
                {"op": "touch", "path": str(folder / f"stored-{name}")},
                {"op": "rounds", "prompt": PROMPT, "turns": turns[name]},
            ]
            given["llm"] = {"block_size": 128}
            engines[name] = Engine(folder, name, str(model), given.pop("connector"), script, **given)
            # One after the other: stores are measured alone.
            wait(folder / f"stored-{name}", engines[name])
        for number in range(rounds):
            for name in of:
                Path(turns[name][number]).touch()
                wait(Path(turns[name][number] + ".done"), engines[name])
        results = {name: engine.finish() for name, engine in engines.items()}
        return report(results, (engines["lmcache"].text() + lmcache.log.read_text()))
    finally:
        for engine in engines.values():
            if engine.process.poll() is None:
                engine.process.kill()
        lmcache.stop()
        daemon.stop()
        shutil.rmtree(files, ignore_errors=True)


def wait(path: Path, engine: Engine) -> None:
    end = time.monotonic() + 400
    while not path.exists():
        if engine.process.poll() is not None or time.monotonic() > end:
            engine.finish()
            raise TimeoutError(path)
        time.sleep(0.01)


def report(results: dict, lmcache_log: str) -> int:
    """The table; 1 when a bar is missed."""
    times, tokens = {}, set()
    print(f"\nPrompt of {TOKENS} tokens, {BYTES >> 20} MiB of KV from outside; median (lowest to highest) of {len(results['kvtier'][4])} rounds, in ms.")
    print("| from | cached tokens | first token | vLLM's own hit | connector time |\n|---|---|---|---|---|")
    for name, (_, _, _, _, rows) in results.items():
        costs = [(row["external"] - row["own"]) * 1e3 for row in rows]
        times[name] = statistics.median(costs)
        tokens |= {row[key] for row in rows for key in ("external_token", "own_token")}
        cells = [statistics.median(row[key] for row in rows) * 1e3 for key in ("external", "own")]
        print(f"| {name} | {rows[0]['external_cached']} | {cells[0]:.1f} | {cells[1]:.1f} | {times[name]:.1f} ({min(costs):.1f} to {max(costs):.1f}) |")
    inside = {name: min(row["external_hits"] for row in of[4]) for name, of in results.items()}
    if min(inside.values()) < TOKENS - 1:
        print(f"not measured: so many tokens came from outside, at least: {inside}")
        return 1
    if len(tokens) != 1:
        print(f"other tokens were generated: {tokens}")
        return 1
    rates = {name: BYTES / results[name][2] / 1e9 for name in ("kvtier", "files")}
    said = re.findall(r"Stored ([0-9]+) tokens in ([0-9.]+) seconds", lmcache_log)
    rates["lmcache"] = max((int(tokens) * BYTES / 2048 / float(seconds) / 1e9 for tokens, seconds in said), default=float("nan"))
    bars = [
        ("connector time / LMCache's", times["kvtier"] / times["lmcache"], 0.5, False),
        ("connector time / files'", times["kvtier"] / times["files"], 1.0, False),
        ("store rate / LMCache's", rates["kvtier"] / rates["lmcache"], 5.0, True),
    ]
    print(f"\nStores: {', '.join(f'{name} {rate:.2f} GB/s' for name, rate in rates.items())} (LMCache's as it says itself)")
    print("\n| bar | value | wanted | |\n|---|---|---|---|")
    missed = 0
    for what, value, bar, is_least in bars:
        holds = value >= bar if is_least else value <= bar
        missed += not holds
        print(f"| {what} | {value:.2f} | {'>=' if is_least else '<='} {bar} | {'held' if holds else '**MISSED**'} |")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
