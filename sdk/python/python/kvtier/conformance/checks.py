"""The scenarios that a connector goes through, each with its own store and engines."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import content
from .engine import Engine
from .findings import Findings
from .request import Request
from .shape import Shape
from .store import Daemon, Faults, install

IDLE_STEPS = 300
"""So many steps in a row in which nothing was computed: it hangs."""
WAIT_SECONDS = (0.001, 0.01)
"""How long a step without anything to compute waits for loads between steps: the first ones, and the others."""


class Hangs(Exception):
    """A scenario does not come to its end."""


@dataclass
class Run:
    """One scenario of one connector."""

    make: type
    extra: dict[str, Any]
    seed: int
    findings: Findings = field(default_factory=Findings)
    registry: content.Registry = field(default_factory=content.Registry)
    engines: list[Engine] = field(default_factory=list)

    def engine(self, name: str, **of: Any) -> Engine:
        """A new engine."""
        extra = {**self.extra, **of.pop("extra", {})}
        made = Engine(self.make, Shape(extra=extra, **of), self.registry, self.findings, name)
        self.engines.append(made)
        return made

    def drive(self, engines: Sequence[Engine], after: Callable[[int], None] = lambda step: None) -> None:
        """Steps all engines in turn until they are idle."""
        idle = step = 0
        while busy := [engine for engine in engines if not engine.is_idle()]:
            after(step)
            step += 1
            if any([engine.step() for engine in busy]):
                idle = 0
                continue
            idle += 1
            if idle > IDLE_STEPS:
                self._hangs(busy)
            time.sleep(WAIT_SECONDS[idle > IDLE_STEPS // 3])

    def _hangs(self, engines: Sequence[Engine]) -> None:
        for engine in engines:
            for request in engine.waiting:
                self.findings.add("never-done", f"{engine.name}: {request.request_id} is {request.state}")
            if engine.kept:
                self.findings.add("blocks-kept", f"{engine.name}: {', '.join(engine.kept)}")
        raise Hangs

    def serve(self, engine: Engine, prompts: Sequence[list[int]], name: str, **of: Any) -> dict[str, list[int]]:
        """Sends prompts and returns what was generated."""
        for number, tokens in enumerate(prompts):
            engine.add(Request(f"{name}-{number}", list(tokens), engine.of.block_tokens, **of))
        self.drive([engine])
        return engine.outputs

    def close(self) -> None:
        """Ends all engines."""
        for engine in self.engines:
            engine.close()


def prompts(seed: int, count: int, longest: int = 70) -> list[list[int]]:
    """Prompts that share beginnings with each other, of all lengths."""
    rng = random.Random(seed)
    documents = [[rng.randrange(1000) for _ in range(longest)] for _ in range(3)]
    found = []
    for _ in range(count):
        document = rng.choice(documents)
        shared = rng.randrange(0, longest - 10)
        found.append(document[:shared] + [rng.randrange(1000) for _ in range(rng.randrange(1, 11))])
    return found


def hits(run: Run, daemon: Daemon) -> None:
    """What one engine stored another one loads, whatever of it is in its local cache already, and generates the same."""
    document = [random.Random(run.seed).randrange(1000) for _ in range(65)]
    first = run.serve(run.engine("first"), [document], "a")
    second = run.engine("second")
    for local in range(0, 8):
        second.reset_local()
        kept, daemon_spaces = {key: dict(space) for key, space in daemon.spaces.items()}, daemon.spaces
        for space in daemon_spaces.values():
            space.clear()
        run.serve(second, [document[: local * second.of.block_tokens + 1]], f"local-{local}", max_tokens=1)
        for key, space in daemon_spaces.items():
            space.clear()
            space.update(kept.get(key, {}))
        again = run.serve(second, [document], f"b-{local}")
        if f"b-{local}-0" in again and again[f"b-{local}-0"] != first.get("a-0"):
            run.findings.add("wrong-block", f"second engine, {local} blocks local: other tokens were generated")
    if second.external_tokens == 0:
        run.findings.add("no-hits", "the same prompt in a second engine")


def stream(run: Run, daemon: Daemon) -> None:
    """Two engines of two ranks, many requests with common beginnings and a few salts, too few blocks."""
    engines = [run.engine(name, ranks=2, blocks=34) for name in ("left", "right")]
    rng = random.Random(run.seed)
    for number, tokens in enumerate(prompts(run.seed, 40)):
        engine = engines[number % 2]
        salt = rng.choice([None, None, "one", "two"])
        engine.add(Request(f"r-{number}", tokens, engine.of.block_tokens, max_tokens=rng.randrange(1, 12), cache_salt=salt))

    def forget(step: int) -> None:
        if step % 7 == 0:
            engines[step % 2].reset_local()

    run.drive(engines, forget)
    if not any(engine.external_tokens for engine in engines):
        run.findings.add("no-hits", "a stream of requests with common beginnings")


def failures(run: Run, daemon: Daemon) -> None:
    """Blocks vanish or break between being found and being loaded, and are refused."""
    daemon.faults = Faults(run.seed, lost=0.1, torn=0.1, refused=0.2)
    for ranks in (1, 2):
        engine = run.engine(f"unlucky-{ranks}", ranks=ranks, blocks=60)
        for number, tokens in enumerate(prompts(run.seed, 40)):
            engine.add(Request(f"r-{number}", tokens, engine.of.block_tokens, max_tokens=3))
        run.drive([engine], lambda step, engine=engine: engine.reset_local() if step % 3 == 0 else None)  # type: ignore[misc]


def cancelled(run: Run, daemon: Daemon) -> None:
    """Requests are cancelled at any time, also while they load, and their blocks go to others."""
    engine = run.engine("hasty", blocks=40)
    rng = random.Random(run.seed)
    every = prompts(run.seed, 10) * 4
    rng.shuffle(every)
    for number, tokens in enumerate(every):
        engine.add(
            Request(f"r-{number}", tokens, engine.of.block_tokens, max_tokens=6, cancel_at=rng.randrange(1, 60) if number % 2 else None)
        )
    run.drive([engine], lambda step: engine.reset_local() if step % 4 == 0 else None)


def salts(run: Run, daemon: Daemon) -> None:
    """Equal prompts under different salts have nothing in common; nor have tenants."""
    document = [random.Random(run.seed).randrange(1000) for _ in range(50)]
    engine = run.engine("salted")
    for salt in (None, "one", "two"):
        engine.reset_local()
        run.serve(engine, [document], f"salt-{salt}", cache_salt=salt)
    if engine.external_tokens:
        run.findings.add("salt-dropped", f"{engine.external_tokens} tokens were promised across salts")


def strangers(run: Run, daemon: Daemon) -> None:
    """Another model, another number of ranks and another size of block meet the same prompts in the same store."""
    document = [random.Random(run.seed).randrange(1000) for _ in range(50)]
    run.serve(run.engine("toy"), [document], "toy")
    others: dict[str, dict[str, Any]] = {"model": {"model": "other"}, "ranks": {"ranks": 2}, "block size": {"block_tokens": 8}}
    for name, of in others.items():
        engine = run.engine(name, **of)
        run.serve(engine, [document], name)
        if engine.external_tokens and name != "ranks":
            run.findings.add("wrong-model", f"{engine.external_tokens} tokens were promised to an engine of another {name}")


def gone(run: Run, daemon: Daemon) -> None:
    """The store does not answer, from the start or from some time on; requests end all the same."""
    daemon.faults.is_gone = True
    engine = run.engine("alone")
    run.serve(engine, prompts(run.seed, 6), "before")
    daemon.faults.is_gone = False
    engine.reset_local()
    run.serve(engine, prompts(run.seed, 6), "between")
    engine.reset_local()
    every = prompts(run.seed, 6)
    for number, tokens in enumerate(every):
        engine.add(Request(f"after-{number}", list(tokens), engine.of.block_tokens))

    def leave(step: int) -> None:
        daemon.faults.is_gone = step >= 2

    run.drive([engine], leave)
    missing = [number for number in range(len(every)) if f"after-{number}" not in engine.outputs]
    if missing:
        run.findings.add("never-done", f"requests {missing} did not end after the store had gone")


SCENARIOS: dict[str, Callable[[Run, Daemon], None]] = {
    "hits": hits,
    "stream": stream,
    "failures": failures,
    "cancelled": cancelled,
    "salts": salts,
    "strangers": strangers,
    "gone": gone,
}


def check(make: type, extra: dict[str, Any] | None = None, seed: int = 1, only: Sequence[str] | None = None) -> dict[str, Findings]:
    """Runs a connector through all scenarios, or some. Findings by scenario; the connector conforms when all are empty."""
    found: dict[str, Findings] = {}
    for name in only or SCENARIOS:
        run = Run(make, dict(extra or {}), seed)
        with install(Daemon()) as daemon:
            try:
                SCENARIOS[name](run, daemon)
            except Hangs:
                pass
            run.close()
            audit(run, daemon)
        found[name] = run.findings
    return found


def audit(run: Run, daemon: Daemon) -> None:
    """Every token of every stored block was computed by somebody, in that layer."""
    for entry in daemon.entries():
        for layer, section in enumerate(entry.layers):
            for size in {engine.of.block_tokens for engine in run.engines}:
                length = content.block_bytes(size)
                blocks = [section[at : at + length] for at in range(0, len(section), length)]
                tokens = [content.get(block, at, size) for block in blocks if len(block) == length for at in range(size)]
                known = [run.registry.known.get(token) for token in tokens]
                if known and all(owner is not None and owner[0].layer == layer for owner in known):
                    break
            else:
                run.findings.add("garbage-stored", f"block at depth {entry.depth}, layer {layer}")
                return
