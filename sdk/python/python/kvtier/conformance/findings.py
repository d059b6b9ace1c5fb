"""What a connector may do wrong, by name."""

from __future__ import annotations

from dataclasses import dataclass, field

RULES = {
    "wrong-rank": "a block of another rank was loaded: the rank is not in the key",
    "wrong-model": "a block of another model was loaded: the model is not in the key",
    "salt-dropped": "a block of another salt was loaded: the request's cache_salt is not in the key",
    "wrong-layer": "a layer's bytes went into another layer",
    "wrong-block": "a block holds the KV of other tokens",
    "token-sliced": "a block was stored or loaded in part, cut by tokens, though its bytes are opaque",
    "garbage": "a block that was to be loaded holds nobody's KV, and no error was reported",
    "error-late": "a failed load was reported after the step that used its blocks",
    "load-after-finish": "a block was written after its load was reported as done, or its request had ended",
    "overwrites-computed": "a load wrote a block that was counted as computed",
    "writes-foreign": "a block was written that was not allocated for any load",
    "garbage-stored": "a block that no engine computed correctly was stored",
    "whole-prompt": "more tokens were promised than a prompt has before its last one",
    "empty-async": "an asynchronous load of nothing was announced",
    "unknown-done": "a transfer was reported as done that nobody waits for",
    "never-done": "an asynchronous load was never reported as done: its request hangs",
    "blocks-kept": "a request's blocks were never given back",
    "raises": "a call raised",
    "no-hits": "nothing was ever loaded, so nothing was checked",
}


@dataclass(frozen=True)
class Finding:
    """A rule that was broken."""

    rule: str
    where: str

    def __str__(self) -> str:
        return f"{self.rule}: {RULES[self.rule]} ({self.where})"


@dataclass
class Findings:
    """All of them, each rule with its first places."""

    found: list[Finding] = field(default_factory=list)

    def add(self, rule: str, where: str) -> None:
        """Notes a broken rule."""
        if rule not in RULES:
            raise KeyError(rule)
        self.found.append(Finding(rule, where))

    def rules(self) -> set[str]:
        """The broken rules."""
        return {finding.rule for finding in self.found}

    def firsts(self) -> list[Finding]:
        """The first place of each broken rule, in order."""
        seen: dict[str, Finding] = {}
        for finding in self.found:
            seen.setdefault(finding.rule, finding)
        return list(seen.values())
