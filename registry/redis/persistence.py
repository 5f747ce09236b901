"""What a 200 is worth on this Redis: told loudly at the start, because it cannot be seen from outside."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from txredisapi import ResponseError

from registry.redis.link import Link

log = Logger()


@inlineCallbacks
def worth_of_a_200(link: Link, *, first: bool) -> Any:
    """Ask Redis how it keeps what it acknowledged, and log it; warnings on every new connection, the rest on the first."""
    answer = yield _ask(link, b"INFO", b"server")
    version = _field(answer, b"redis_version")
    persistence = yield _ask(link, b"INFO", b"persistence")
    memory = yield _ask(link, b"INFO", b"memory")
    policy = _field(memory, b"maxmemory_policy") or (yield _setting(link, b"maxmemory-policy"))
    maxmemory = _field(memory, b"maxmemory") or (yield _setting(link, b"maxmemory"))
    if policy not in ("", "noeviction") and maxmemory != "0":
        log.critical(
            "Redis may throw tasks away: its maxmemory-policy is {policy}. Set it to noeviction, or tasks answered 200 can be lost.",
            policy=policy,
        )
    fsync = yield _setting(link, b"appendfsync")
    if _field(persistence, b"aof_enabled") == "1":
        worth = {
            "always": "a task answered 200 is on Redis's disk",
            "everysec": "a task answered 200 survives the end of Redis, but the last two seconds may be lost with its machine",
        }.get(fsync, "a task answered 200 is on Redis's disk some time later")
        if first:
            log.info(
                "Redis {version}, append-only file with fsync {fsync}: {worth}",
                version=version,
                fsync=fsync or "unknown",
                worth=worth,
            )
        return
    save = yield _setting(link, b"save")
    if save:
        log.warn(
            "Redis {version} keeps snapshots only ({save}): tasks answered 200 since the last one are lost when it ends.",
            version=version,
            save=save,
        )
    else:
        log.critical(
            "Redis {version} keeps nothing on disk: every task is lost when it ends. Set appendonly yes.",
            version=version,
        )


def _ask(link: Link, *args: bytes) -> Deferred[bytes]:
    # A user without the right to ask must not keep the daemon from serving.
    return link.command(*args).addErrback(lambda f: f.trap(ResponseError) and b"")


@inlineCallbacks
def _setting(link: Link, name: bytes) -> Any:
    pair = yield _ask(link, b"CONFIG", b"GET", name)
    return pair[1].decode() if pair and len(pair) == 2 else ""


def _field(info: bytes, name: bytes) -> str:
    for line in (info or b"").split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key == name:
            return value.decode()
    return ""
