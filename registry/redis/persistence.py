"""How safe a task answered 200 is on this Redis: logged at the start, because clients cannot see it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from txredisapi import ResponseError

from registry.redis.link import Link

log = Logger()

DURABILITY = {
    "always": "a task answered 200 is on Redis's disk",
    "everysec": "a task answered 200 is on Redis's disk within about two seconds, and may be lost before when it ends abruptly",
}
# The reason that follows "cannot tell".
NOT_PERMITTED = "INFO or CONFIG GET is renamed or forbidden"


@inlineCallbacks
def check_durability(link: Link, *, first: bool) -> Any:
    """Ask Redis how it stores what it acknowledged, and log it: warnings on every new connection, the rest on the first.

    Fires with the warnings, one sentence each.
    """
    server = yield _ask(link, b"INFO", b"server")
    # Valkey reports as its redis_version the last one that it shares with Redis.
    valkey, version = _field(server, b"valkey_version"), _field(server, b"redis_version")
    persistence = yield _ask(link, b"INFO", b"persistence")
    memory = yield _ask(link, b"INFO", b"memory")
    policy = _field(memory, b"maxmemory_policy") or (yield _setting(link, b"maxmemory-policy"))
    aof = _field(persistence, b"aof_enabled")
    fsync = yield _setting(link, b"appendfsync")
    save = yield _setting(link, b"save")
    redis = f"Valkey {valkey}" if valkey else f"Redis {version}" if version else "Redis"
    warnings, unknown = [], []
    if policy is None:
        unknown.append(
            f"Cannot tell whether {redis} evicts tasks when it is full: {NOT_PERMITTED}. Its maxmemory-policy must be noeviction."
        )
    elif policy != "noeviction":
        warnings.append(
            f"Redis may evict tasks: its maxmemory-policy is {policy}. "
            "Set it to noeviction, or tasks answered 200 can be lost."
        )
    if not aof:
        unknown.append(f"Cannot tell what {redis} keeps on disk: {NOT_PERMITTED}. Set appendonly yes.")
    elif aof == "1" and fsync is None:
        unknown.append(
            f"{redis} has an append-only file, but cannot tell how soon it syncs a task answered 200: {NOT_PERMITTED}."
        )
    elif aof == "1":
        if first:
            durability = DURABILITY.get(fsync, "a task answered 200 is on Redis's disk some time later")
            log.info(
                "{redis}, append-only file with fsync {fsync}: {durability}",
                redis=redis,
                fsync=fsync,
                durability=durability,
            )
    elif save is None:
        unknown.append(
            f"{redis} has no append-only file, and cannot tell whether it keeps snapshots: {NOT_PERMITTED}. "
            "At best the tasks answered 200 since the last one are lost when it ends."
        )
    elif save:
        warnings.append(
            f"{redis} keeps snapshots only ({save}): tasks answered 200 since the last one are lost when it ends."
        )
    else:
        warnings.append(
            f"{redis} keeps nothing on disk: every task is lost when it ends. Set appendonly yes."
        )
    for warning in warnings:
        log.critical("{warning}", warning=warning)
    for warning in unknown:
        log.warn("{warning}", warning=warning)
    return warnings + unknown


def _ask(link: Link, *args: bytes) -> Deferred[bytes]:
    # A user without the right to ask must not keep the daemon from serving.
    return link.command(*args).addErrback(lambda f: f.trap(ResponseError) and b"")


@inlineCallbacks
def _setting(link: Link, name: bytes) -> Any:
    pair = yield _ask(link, b"CONFIG", b"GET", name)
    # None when it may not be read: CONFIG is renamed or forbidden on many hosted Redis servers.
    return pair[1].decode() if pair and len(pair) == 2 else None


def _field(info: bytes, name: bytes) -> str:
    for line in (info or b"").split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key == name:
            return value.decode()
    return ""
