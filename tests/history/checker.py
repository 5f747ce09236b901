"""Judges a recorded history, after Jepsen's total-queue: what was acknowledged must be accounted for, and no more.

A pure function: the same history is always judged the same. Order within a queue is not judged, for faults put tasks back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from tests.history.record import Given, History, Pop, Push, Settle, Stored

# Clocks of two processes are compared, s.
TOLERANCE = 0.05
# An answer reaches the client at most this long after the lease in it began, when nothing is disturbed, s.
ON_ITS_WAY = 0.75
# How long a fault is felt after it is healed: connections come back, and what was kept meanwhile is sent, s.
AFTERMATH = 2.0
HAND_OVER = 30.0
# A task on which so many workers died is dead.
POISON = 3
# Faults that can keep a daemon from confirming that an answer was written.
BREAKS_CONFIRM = ("kill daemon", "pause redis", "kill redis", "kill connections", "lag")
SLOWS = ("pause redis", "kill redis", "kill connections", "lag", "kill daemon", "stop daemon")


@dataclass(slots=True)
class Delivery:
    """A task as a client got it, once for each lease."""

    given: Given
    begin: float
    received: float
    pop: Pop


@dataclass(slots=True)
class Life:
    """All that is known of one task by its number."""

    value: int
    pushes: list[Push] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    states: list[str] = field(default_factory=list)
    settles: list[Settle] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        return any(push.outcome == "ok" and not push.duplicate for push in self.pushes)

    @property
    def may_exist(self) -> bool:
        """A request to push it was answered 200 as a new task, or nobody knows what became of one."""
        return self.acknowledged or any(push.outcome == "unknown" for push in self.pushes)

    def settled(self, verb: str) -> list[Settle]:
        return [settle for settle in self.settles if settle.verb == verb]


class Checker:
    """One pass over a history; `violations` are sentences, empty when all promises were kept."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.violations: list[str] = []
        self.lives: dict[int, Life] = {}
        self.explained: Counter[str] = Counter()
        self._lease_of: dict[str, Life] = {}
        self._collect()

    def check(self) -> list[str]:
        """Judge all of it."""
        blind = self._blind_pops()
        for life in self.lives.values():
            self._pushed(life)
            self._one_identity(life)
            self._accounted(life, blind)
            self._after_ack(life)
            self._duplicates(life)
            self._dead_stays(life)
        self._keys()
        self._answers_in_time()
        for stored in self.history.stored:
            if stored.state in ("ready", "delayed", "leased"):
                self._bad(f"task {stored.value} of {stored.queue} is stuck: {stored.state} after the drain")
            self._poison(stored)
        for key in self.history.left_behind:
            self._bad(f"a drained short-lived queue left the key {key!r} behind")
        return self.violations

    def _bad(self, sentence: str) -> None:
        self.violations.append(sentence)

    def _life(self, value: int) -> Life:
        return self.lives.setdefault(value, Life(value))

    # Collecting

    def _collect(self) -> None:
        for push in self.history.pushes:
            for value in push.values:
                self._life(value).pushes.append(push)
            if push.outcome == "ok" and not push.duplicate:
                if len(push.ids) != len(push.values):
                    self._bad(f"a push of {len(push.values)} tasks was answered with {len(push.ids)} ids")
                for value, task_id in zip(push.values, push.ids, strict=False):
                    self._life(value).ids.add(task_id)
        seen: dict[str, Delivery] = {}
        for pop in self.history.pops:
            for given in pop.given:
                self._delivered(Delivery(given, pop.begin, pop.end, pop), seen)
        for stored in self.history.stored:
            life = self._life(stored.value)
            life.ids.add(stored.id)
            life.states.append(stored.state)
        for settle in self.history.settles:
            if settle.lease in self._lease_of:
                self._lease_of[settle.lease].settles.append(settle)

    def _delivered(self, delivery: Delivery, seen: dict[str, Delivery]) -> None:
        given = delivery.given
        life = self._life(given.value)
        life.ids.add(given.id)
        if given.lease:
            self._lease_of[given.lease] = life
            before = seen.get(given.lease)
            if before is not None:
                key = delivery.pop.idempotency
                if key is None or key != before.pop.idempotency:
                    self._bad(f"lease {given.lease} of task {given.value} was given to two requests")
                # The lease began before its first answer; a repeat of the answer is no delivery of its own.
                before.begin = min(before.begin, delivery.begin)
            else:
                seen[given.lease] = delivery
        life.deliveries.append(delivery)

    # Existence

    def _pushed(self, life: Life) -> None:
        if not life.deliveries and not life.states:
            return
        if not life.pushes:
            self._bad(f"task {life.value} was delivered or stored, and never pushed")
        elif not life.may_exist:
            told = [
                f"{push.status}{' duplicate' if push.duplicate else ''} {push.outcome}"
                for push in life.pushes
            ]
            self._bad(f"task {life.value} was delivered or stored, though its push was answered {told}")
        elif life.deliveries:
            queue = life.pushes[0].queue
            for delivery in life.deliveries:
                if delivery.given.queue != queue:
                    self._bad(f"task {life.value} of {queue} was delivered from {delivery.given.queue}")

    def _one_identity(self, life: Life) -> None:
        if len(life.ids) > 1:
            self._bad(f"task {life.value} was stored {len(life.ids)} times: ids {sorted(life.ids)}")
        if len(life.states) > 1:
            self._bad(f"task {life.value} is shown in {life.states} at once")

    def _blind_pops(self) -> dict[str, list[Pop]]:
        """Pops without lease that hung up without reading: each may have got one task that nobody saw."""
        found: dict[str, list[Pop]] = defaultdict(list)
        for pop in self.history.pops:
            if not pop.leased and pop.blind and not pop.given:
                for queue in pop.queues:
                    found[queue].append(pop)
        return found

    def _accounted(self, life: Life, blind: dict[str, list[Pop]]) -> None:
        acks = [
            ack for ack in life.settled("ack") if ack.answer in ("done", "late") or ack.outcome == "unknown"
        ]
        handed = any(not delivery.given.lease for delivery in life.deliveries)
        if "done" in life.states and not acks and not handed and not self._take_blind(life, blind):
            self._bad(f"task {life.value} is done, and nobody was given it or acknowledged it")
        if not life.acknowledged or life.states or acks or handed:
            return
        if self._take_blind(life, blind):
            self.explained["lost to a client that hung up"] += 1
            return
        self._bad(f"task {life.value} of {life.pushes[0].queue} is LOST: {self._story(life)}")

    def _take_blind(self, life: Life, blind: dict[str, list[Pop]]) -> bool:
        since = min(push.begin for push in life.pushes) if life.pushes else 0.0
        pops = blind.get(life.pushes[0].queue, []) if life.pushes else []
        for pop in pops:
            if pop.end > since:
                pops.remove(pop)
                return True
        return False

    # Once, and again only with a reason

    def _after_ack(self, life: Life) -> None:
        accepted = [ack for ack in life.settled("ack") if ack.answer in ("done", "late")]
        if len({ack.lease for ack in accepted}) > 1:
            self._bad(f"task {life.value} was acknowledged under two leases: {self._story(life)}")
        attempts = {delivery.given.lease: delivery.given.attempt for delivery in life.deliveries}
        for ack in accepted:
            for delivery in life.deliveries:
                if delivery.received <= ack.end:
                    continue
                overtaken = (
                    delivery.begin < ack.end
                    and delivery.given.attempt <= attempts[ack.lease]
                    and (delivery.given.attempt < attempts[ack.lease] or delivery.given.lease == ack.lease)
                )
                if not overtaken:
                    self._bad(f"task {life.value} was delivered after its ack: {self._story(life)}")
        for lease in {ack.lease for ack in accepted}:
            first = min(ack.end for ack in accepted if ack.lease == lease)
            for ack in life.settled("ack"):
                if ack.lease == lease and ack.begin > first and ack.answer == "lease_lost":
                    self._bad(f"a repeated ack of lease {lease} was told that the lease is lost")

    def _duplicates(self, life: Life) -> None:
        first_of: dict[str, Delivery] = {}
        ones: list[Delivery] = []
        for delivery in life.deliveries:
            lease = delivery.given.lease
            if lease and lease in first_of:
                continue
            first_of[lease] = delivery
            ones.append(delivery)
        # Attempts never go down, so they tell the order on the server better than our clock does.
        ones.sort(key=lambda one: (one.given.attempt, one.received))
        for before, after in pairwise(ones):
            reason = self._reason(life, before, after)
            if reason is None:
                self._bad(f"task {life.value} was delivered again without a reason: {self._story(life)}")
            else:
                self.explained[reason] += 1

    def _reason(self, life: Life, before: Delivery, after: Delivery) -> str | None:
        lease = before.given.lease
        if any(
            one.pop.hung_up
            for one in life.deliveries
            if one is before or (lease and one.given.lease == lease)
        ):
            return "hang-up"
        if self._felt(("fail over",), before.received, before.received + 1.0):
            # A pop does not wait for replicas: the new master may never have seen it.
            return "fail over"
        if not lease:
            lapsed = after.received >= before.begin + HAND_OVER - TOLERANCE
            return "hand-over" if lapsed and self._unconfirmed(before) else None
        for settle in life.settles:
            if settle.lease == lease and settle.verb in ("fail", "release") and settle.begin < after.received:
                if settle.answer in ("ready", "delayed", "released"):
                    return settle.verb
                if settle.outcome == "unknown":
                    return f"{settle.verb} unknown"
        return "expiry" if after.received >= self._earliest_expiry(life, before, after) - TOLERANCE else None

    def _earliest_expiry(self, life: Life, before: Delivery, after: Delivery) -> float:
        began = before.begin
        if not self._felt(SLOWS, before.received - AFTERMATH, before.received):
            # A parked poll began long before its lease did.
            began = max(began, before.received - ON_ITS_WAY)
        earliest = began + before.given.seconds
        for settle in life.settles:
            if (
                settle.verb == "extend"
                and settle.lease == before.given.lease
                and settle.answer == "extended"
                and settle.end <= after.received
            ):
                earliest = max(earliest, settle.begin + settle.seconds)
        return earliest

    def _unconfirmed(self, delivery: Delivery) -> bool:
        """Something may have kept the daemon from confirming it."""
        at, daemon = delivery.received, delivery.pop.daemon
        return self._felt(BREAKS_CONFIRM, at - 1.0, at + 1.0, daemon)

    def _felt(self, kinds: tuple[str, ...], since: float, until: float, daemon: int | None = None) -> bool:
        return any(
            fault.what in kinds
            and fault.begin <= until
            and fault.end + AFTERMATH >= since
            and (daemon is None or fault.daemon in (-1, daemon))
            for fault in self.history.faults
        )

    def _dead_stays(self, life: Life) -> None:
        buried = [fail for fail in life.settled("fail") if fail.answer == "dead"]
        if buried and life.states != ["dead"]:
            self._bad(f"task {life.value} was told dead, and is now {life.states or 'gone'}")

    def _poison(self, stored: Stored) -> None:
        """Poison is what enough workers died on. A worker that was late may still have ended it; nobody retries here."""
        workers = set(stored.died)
        if stored.reason == "poison" and len(workers) < POISON:
            self._bad(f"task {stored.value} is poison, and only {sorted(map(str, workers))} died on it")
        if len(workers) >= POISON and stored.reason not in ("poison", "cancelled") and stored.state != "done":
            self._bad(f"{len(workers)} workers died on task {stored.value}, which is not poison")

    # Unique keys

    def _first_tries(self) -> dict[tuple[str, str], float]:
        """When the first request began that may have been carried out, by queue and Idempotency-Key: later ones repeat its answer."""
        first: dict[tuple[str, str], float] = {}
        for push in self.history.pushes:
            if push.idempotency is not None and push.outcome in ("ok", "unknown"):
                at = push.queue, push.idempotency
                first[at] = min(push.begin, first.get(at, push.begin))
        return first

    def _keys(self) -> None:
        first_tries = self._first_tries()
        owners: dict[str, Life] = {task_id: life for life in self.lives.values() for task_id in life.ids}
        keyed: dict[tuple[str, str], list[Life]] = defaultdict(list)
        for push in self.history.pushes:
            if push.key is None or push.outcome != "ok":
                continue
            if not push.duplicate:
                keyed[push.queue, push.key].append(self.lives[push.values[0]])
                continue
            owner = owners.get(push.ids[0])
            asked = first_tries[push.queue, push.idempotency] if push.idempotency is not None else push.begin
            if owner is None or all(other.key != push.key for other in owner.pushes):
                self._bad(f"a push with key {push.key} was told of {push.ids[0]}, which has not that key")
            elif any(ack.answer in ("done", "late") and ack.end < asked for ack in owner.settled("ack")):
                self._bad(f"a push with key {push.key} was told of task {owner.value}, which was done before")
        for (_, key), lives in keyed.items():
            # Of one that had ended when its push was answered, as a replay, nobody knows when it lived.
            known = [(span, life.value) for life in lives if (span := self._alive(life))[0] < span[1]]
            spans = sorted(known, key=lambda one: one[0][0])
            for ((_, until), value), ((since, _), other) in pairwise(spans):
                if value != other and since < until:
                    self._bad(f"tasks {value} and {other} held the key {key} at the same time")

    def _alive(self, life: Life) -> tuple[float, float]:
        """From when to when the task certainly was stored and had not ended."""
        since = min(push.end for push in life.pushes if push.outcome == "ok" and not push.duplicate)
        ends = [ack.begin for ack in life.settled("ack") if ack.answer != "lease_lost"]
        ends += [
            fail.begin for fail in life.settled("fail") if fail.answer == "dead" or fail.outcome == "unknown"
        ]
        if not ends:
            # Dead by its attempts or its ttl: when, nobody was told.
            return since, since
        return since, max(since, min(ends))

    # Liveness

    def _answers_in_time(self) -> None:
        for silence in self.history.silences:
            if not self._felt(("lag",), silence.begin, silence.end):
                told = (
                    f"{silence.end - silence.begin:.1f} s, daemon {silence.daemon}, from {silence.begin:.3f}"
                )
                self._bad(f"no answer to {silence.path} in {told}")

    def _story(self, life: Life) -> str:
        """All that happened to a task, in order, for a person."""
        lines: list[tuple[float, str]] = []
        for push in life.pushes:
            lines.append(
                (push.begin, f"push {push.outcome} {push.status} on {push.daemon} until {push.end:.3f}")
            )
        for one in life.deliveries:
            given, pop = one.given, one.pop
            how = f"lease {given.lease} of {given.seconds} s" if given.lease else "without lease"
            flags = (" hung up" if pop.hung_up else "") + (
                f" key {pop.idempotency}" if pop.idempotency else ""
            )
            told = f"{pop.begin:.3f} pop on {pop.daemon}, attempt {given.attempt}, {how}{flags}"
            lines.append((one.received, told))
        for settle in life.settles:
            what = (
                f"{settle.verb} {settle.answer or settle.outcome} on {settle.daemon} until {settle.end:.3f}"
            )
            lines.append((settle.begin, f"{what} of {settle.lease}"))
        return " | ".join(f"{at:.3f} {what}" for at, what in sorted(lines))


def check(history: History) -> list[str]:
    """What was promised and not kept, a sentence each; empty for a good history."""
    return Checker(history).check()
