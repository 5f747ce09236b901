"""What a run of the history test writes down: every request with its outcome, every fault, and what was left.

Times are seconds of the monotonic clock of the process that recorded them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

# ok: an answer of 200 · nothing: 202 · refused: 4xx, or 503 not_applied · unknown: 5xx else, or no whole answer.
Outcome = Literal["ok", "nothing", "refused", "unknown"]


@dataclass(slots=True)
class Push:
    """One request to push. Repeats of a request whose outcome was unknown have the same ``values`` and ``idempotency``.

    ``values`` are the numbers of the tasks, each made for one push alone; ``ids`` what the answer called them.
    """

    queue: str
    begin: float
    end: float
    daemon: int
    outcome: Outcome
    values: list[int]
    ids: list[str] = field(default_factory=list)
    idempotency: str | None = None
    key: str | None = None
    duplicate: bool = False
    status: int = 0


@dataclass(slots=True)
class Given:
    """A task in the answer of a pop; ``lease`` is empty for a pop without one, ``seconds`` its length."""

    queue: str
    value: int
    id: str
    attempt: int
    lease: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Pop:
    """One request to pop. ``hung_up``: the client went before it knew of an answer; it may still have read one.

    ``blind``: it went without reading what was on its way.
    """

    queues: list[str]
    begin: float
    end: float
    daemon: int
    outcome: Outcome
    leased: bool
    given: list[Given] = field(default_factory=list)
    idempotency: str | None = None
    hung_up: bool = False
    blind: bool = False
    status: int = 0


@dataclass(slots=True)
class Settle:
    """An ack, fail, release or extend. ``answer``: done, late, ready, delayed, dead, lease_lost, released, extended."""

    verb: str
    queue: str
    begin: float
    end: float
    daemon: int
    outcome: Outcome
    lease: str
    answer: str = ""
    seconds: float = 0.0
    status: int = 0


@dataclass(slots=True)
class Fault:
    """Something the nemesis did, until it was healed; ``daemon`` is the one it was done to, or -1."""

    what: str
    begin: float
    end: float
    daemon: int = -1


@dataclass(slots=True)
class Silence:
    """A request that no answer, and no end of its connection, came for in the time it has."""

    path: str
    begin: float
    end: float
    daemon: int


@dataclass(slots=True)
class Stored:
    """A task that the API shows at the end. ``reason``: why it is dead. ``died``: the worker of each lease that ran out."""

    queue: str
    id: str
    value: int
    state: str
    reason: str = ""
    died: list[str | None] = field(default_factory=list)


@dataclass(slots=True)
class History:
    """All of a run."""

    pushes: list[Push] = field(default_factory=list)
    pops: list[Pop] = field(default_factory=list)
    settles: list[Settle] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    silences: list[Silence] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    # Keys of Redis that belong to short-lived queues, and are there though these were drained.
    left_behind: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """One JSON object a line, so that a run that failed can be looked at, and checked again."""
        with open(path, "w", encoding="utf-8") as out:
            for name in self.__slots__:
                for one in getattr(self, name):
                    out.write(json.dumps([name, one if isinstance(one, str) else asdict(one)]) + "\n")

    @classmethod
    def load(cls, lines: Iterable[str]) -> History:
        """What `save` wrote."""
        kinds: dict[str, Any] = {
            "pushes": Push,
            "pops": lambda **known: Pop(**{**known, "given": [Given(**one) for one in known["given"]]}),
            "settles": Settle,
            "faults": Fault,
            "silences": Silence,
            "stored": Stored,
        }
        history = cls()
        for line in lines:
            name, known = json.loads(line)
            getattr(history, name).append(known if isinstance(known, str) else kinds[name](**known))
        return history

    def counts(self) -> dict[str, int]:
        """How much of what was recorded, for the one line a run prints."""
        counted: dict[str, int] = {}
        for push in self.pushes:
            counted[f"push {push.outcome}"] = counted.get(f"push {push.outcome}", 0) + 1
        for pop in self.pops:
            counted[f"pop {pop.outcome}"] = counted.get(f"pop {pop.outcome}", 0) + 1
            if pop.hung_up:
                counted["hang-up"] = counted.get("hang-up", 0) + 1
        for settle in self.settles:
            told = f"{settle.verb} {settle.answer or settle.outcome}"
            counted[told] = counted.get(told, 0) + 1
        for fault in self.faults:
            counted[f"fault {fault.what}"] = counted.get(f"fault {fault.what}", 0) + 1
        return dict(sorted(counted.items()))
