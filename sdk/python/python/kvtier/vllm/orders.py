"""What the scheduler's side tells the workers' side, step by step, and what comes back. Plain data, pickled between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from .plan import Span

Rows = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Load:
    """Stored blocks to copy into a request's engine blocks."""

    serial: int
    """Counts loads; saves name the loads that they depend on."""
    request: str
    span: Span
    rows: Rows
    is_async: bool


@dataclass(frozen=True)
class Save:
    """Stored blocks to offer, whole after this step."""

    request: str
    span: Span
    rows: Rows
    after: tuple[int, ...] = ()
    """Loads whose outcome the scheduler does not know yet and whose blocks this request attends to: if one failed, these blocks were
    computed from garbage and must not be stored."""


@dataclass
class Orders:
    """One step's orders."""

    step: int
    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    oldest: int = 0
    """No save will name an older load any more."""


@dataclass
class Outcome:
    """What workers say after a step."""

    step: int
    stored: int = 0
    """Stored blocks that the store took (`inserted`)."""

    def join(self, other: Outcome) -> Outcome:
        """The outcome of several workers: a step counts as done by all when the slowest has done it."""
        return Outcome(min(self.step, other.step), self.stored + other.stored)
