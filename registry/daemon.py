"""The daemon as one service, and the order in which its parts are started and stopped.

start: (embedded Redis) -> links to Redis -> periodic jobs -> listening ports -> READY
stop:  close ports -> answer parked polls -> finish requests in progress -> periodic jobs, links -> embedded Redis
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger

from registry import __version__
from registry.child import Parent
from registry.config import Config, mask_url
from registry.endpoints import endpoints_of
from registry.errors import RedisUnavailable, RegistryError, Unavailable, sentence
from registry.http.access import Access
from registry.http.admin import Admin
from registry.http.auth import Gate
from registry.http.cors import Cors
from registry.http.events import Events
from registry.http.findings import FindingList
from registry.http.options import is_json
from registry.http.parser import Heads
from registry.http.proxies import Proxies
from registry.http.reference import Reference
from registry.http.routes import Api
from registry.http.server import Server
from registry.http.sessions import Sessions
from registry.http.tasks import Tasks
from registry.http.token_list import TokenList
from registry.http.turns import Turns
from registry.layers import Layers
from registry.listening import (
    ConnectionLimit,
    accept_waiting,
    address_text,
    check_public,
    is_loopback,
    listen_on,
    raise_file_limit,
    startup_error,
)
from registry.metrics import Metrics, Sources
from registry.queue.census import Census
from registry.queue.completions import Completions
from registry.queue.dead_tasks import DeadTasks
from registry.queue.findings import Findings
from registry.queue.inspector import Inspector
from registry.queue.inventory import Inventory
from registry.queue.last_used import LastUsed
from registry.queue.notices import Notices
from registry.queue.operations import Operations
from registry.queue.queues import Queues
from registry.queue.schedules import Schedules
from registry.queue.sights import Sights
from registry.queue.stats import Stats
from registry.queue.sweeper import Sweeper
from registry.redis.commands import Replicas
from registry.redis.embedded import Embedded
from registry.redis.link import Link, Pool
from registry.redis.persistence import check_durability
from registry.redis.store import NewerSchema, Store
from registry.redis.subscriber import Subscriber
from registry.redis.topology import Address, parse_address
from registry.stalls import StallWatch
from registry.stopping import StopsOnce
from registry.systemd import Notifier
from registry.token_watch import TokenWatch

log = Logger()

# When the daemon stops, requests in progress get this long to finish, s.
DRAIN_SECONDS = 15.0
# At start, the ports accept nothing until Redis is ready, at most this long, s; then requests are answered as without Redis.
REDIS_SECONDS = 1.0
# /readyz waits this long for Redis, s.
READY_SECONDS = 2.5
# When the daemon stops, idle connections stay open this long, so that a request already sent gets an answer, s.
LAST_SECONDS = 0.1


class Daemon(StopsOnce):
    """Everything between the ports and Redis. ``reactor`` and ``environ`` come from the composition root (tap.py)."""

    name = "registry"

    def __init__(
        self,
        config: Config,
        reactor: Any,
        environ: Mapping[str, str] = os.environ,
        access_log: Callable[..., None] | None = None,
        fail: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.config = config
        self._reactor = reactor
        self._environ = environ
        self._access_log = access_log
        self._fail = fail
        self._ports: list[IListeningPort] = []
        self._paused_ports: list[Any] = []
        self._handed_over = False
        self._embedded: Embedded | None = None
        self._parent = Parent.of(reactor, environ)
        self._notifier = self._parent or Notifier(reactor, environ)
        self._built = False
        self._ready_once = False
        self._warnings: list[str] = []
        self._strangers: list[str] = []
        self._gate = Gate()
        self._sessions = Sessions(self._gate, config.base_path)
        self._proxies = Proxies(config.trusted_proxies)
        self._layers = Layers(self._proxies, reactor)
        self._tokens = TokenWatch(config.tokens_file, self._gate, reactor, self._tokens_changed)
        self._overlaps: list[str] = []

    # Start

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._start().addErrback(self._cannot_start)

    @inlineCallbacks
    def _start(self) -> Any:
        config = self.config
        max_connections = raise_file_limit()
        log.info("registry {version} starts with {settings}", version=__version__, settings=config.describe())
        self._gate.is_closed = self._parent is not None and self._parent.has_tokens
        self._tokens.start()
        if config.redis_url:
            address: Address = parse_address(config.redis_url)
            log.info("tasks are stored in the Redis at {url}", url=mask_url(config.redis_url))
        else:
            self._embedded = Embedded(
                self._reactor,
                config.data_dir,
                _fsync(config.redis_fsync),
                config.redis_server,
                maxmemory=config.redis_maxmemory,
            )
            address = yield self._embedded.start()
        self._build(address)
        self._connection_limit = ConnectionLimit(
            self.server,
            self.server.by_address,
            max_connections,
            config.max_connections_per_address,
            self._proxies.trusts,
        )
        address.start(self._reactor)
        self._link.start()
        self._pool.start()
        self._subscriber.start()
        self._sweeper.start()
        self._stalls.start()
        yield self._listen()
        if self.stopping:
            return
        # The objects made so far live as long as the process: exclude them from garbage collection. Collect less often,
        # because each request makes many small objects.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        self._notifier.ready("serving")

    def _build(self, address: Address) -> None:
        reactor, config = self._reactor, self.config
        self._address = address
        self._link = Link(reactor, address, name="scripts", on_ready=self._on_redis_connected)
        self._pool = Pool(lambda: Link(reactor, address, name="look-ups"), max(1, config.pool_max - 2))
        self._store = Store(self._link, self._pool, config.key_prefix, replicas=_replicas(config))
        self.queues = Queues(self._store, reactor.callLater, is_json, redis_wait=config.redis_wait)
        self._completions = Completions(self.queues)
        inventory = Inventory(self.queues)
        notices = Notices(self.queues, self._completions, inventory.noticed)
        self._subscriber = Subscriber(
            reactor, address, notices.channels, notices.received, notices.look_again
        )
        schedules = Schedules(self.queues)
        inspector = Inspector(self.queues)
        census = Census(self.queues, inspector)
        self._stats = Stats(self.queues, census, Sights(self._store, self.queues.roster.sights))
        self._last_used = last_used = LastUsed(self._store, self._gate.take_used)
        self._sweeper = Sweeper(
            self._store,
            self.queues,
            schedules,
            reactor,
            self._look_for_overlaps,
            last_used.write,
            self._stats.write,
        )
        operations = Operations(self.queues, inspector)
        turns = Turns(reactor.callLater)
        self.verbs = Tasks(self.queues, inspector, self._completions, turns, config)
        admin = Admin(
            self.queues,
            inspector,
            operations,
            schedules,
            self._completions,
            turns,
            config.max_wait,
            self._stats,
        )
        findings = FindingList(
            Findings(self.queues, inventory, DeadTasks(self.queues), self._refused_ago),
            inventory,
            self._gate,
            self._is_anonymous,
            self._store.now_ms,
        )
        self.events = Events(self.queues, inventory, findings, reactor)
        self.api = api = Api(
            self.verbs,
            admin,
            self._redis_state,
            lambda: self.stopping,
            self._all_warnings,
            self._gate,
            self._sessions,
            TokenList(self._gate, last_used.read),
            lambda: self._metrics.page(),
            self.verbs.orders,
            environment=config.environment,
            reference=Reference(config),
            findings=findings,
            events=self.events,
        )
        access = Access(self._access_log, reactor.callLater) if self._access_log is not None else None
        self._access = access
        heads = Heads(
            api.find,
            host_allowed(config.allowed_hosts),
            _limits(config),
            self._gate,
            find_session=self._sessions.find,
            proxies=self._proxies,
            cors=Cors(config.cors_origins),
            base_path=config.base_path,
        )
        self.server = Server(
            heads,
            delivered=self.verbs.delivered,
            lost=self.verbs.lost,
            reactor=reactor,
            access=access,
            max_body_bytes=config.max_bodies_bytes,
        )
        self._stalls = StallWatch(reactor.callLater)
        self.queues.batching.corked = self.server.corked
        self._metrics = self._make_metrics(census)
        self.queues.heartbeat.share = self._metrics.share
        self._built = True

    def _make_metrics(self, census: Census) -> Metrics:
        server, parent = self.server, self._parent

        def answered() -> Iterator[tuple[str, str, int, int]]:
            yield from self.api.answered()
            for status, count in server.unrouted.items():
                yield "", "", status, count

        sources = Sources(
            answered,
            server.refused,
            lambda: len(server.connections),
            self._stalls.lags,
            self._gate.expiries,
            self._is_anonymous,
        )
        daemon, slot = (parent.daemon, parent.slot) if parent is not None else ("", 0)
        return Metrics(self.queues, census, sources, daemon, slot)

    @inlineCallbacks
    def _on_redis_connected(self, link: Link) -> Any:
        try:
            yield self._store.on_connect()
        except NewerSchema as e:
            self._reactor.callLater(0, self._give_up, str(e))
            # No traceback is needed: the link treats this Redis as one that it cannot use.
            raise RedisUnavailable(str(e)) from e
        self._warnings = yield check_durability(link, first=not self._ready_once)
        yield self._learn_secret()
        yield self._look_for_overlaps(on_connect=True)
        self._ready_once = True
        # Later, because the link is ready only after this function has returned.
        self._reactor.callLater(0, self._redis_is_back)

    @inlineCallbacks
    def _look_for_overlaps(self, on_connect: bool = False) -> Any:
        """Find other registries on this Redis. Each is logged once, and shown in /readyz for as long as it is there."""
        found = yield self._store.overlaps(on_connect=on_connect)
        if not on_connect:
            # Another daemon may have made a new one since, after somebody emptied Redis.
            yield self._learn_secret()
        for text in found:
            if text not in self._overlaps:
                log.critical("{text}", text=text)
        self._overlaps = found

    @inlineCallbacks
    def _learn_secret(self) -> Any:
        """Learn what sessions are signed with, once there is a token to sign in with."""
        if self._gate.is_closed:
            with contextlib.suppress(Unavailable):
                self._sessions.secret = yield self._store.session_secret()

    def _redis_is_back(self) -> None:
        self.queues.redis_is_back()
        self._completions.look_again()

    def _redis_state(self) -> Deferred[str]:
        """Fires with "" when Redis accepts writes now, else with a sentence that says why not."""
        if not self._store.ready:
            return succeed(sentence(f"Redis cannot be used: {self._link.last_error}"))
        result: Deferred[str] = Deferred()
        # The probe is not cancelled at the timeout, because its reply must still be read.
        timer = self._reactor.callLater(READY_SECONDS, result.callback, "Redis does not answer.")

        def answered(why: str) -> None:
            if timer.active():
                timer.cancel()
                result.callback(why)

        self._store.probe().addCallbacks(lambda _: answered(""), lambda f: answered(f.getErrorMessage()))
        return result

    @inlineCallbacks
    def _listen(self) -> Any:
        if self._parent is None:
            yield self._bind()
        # Wait for Redis. Meanwhile new connections wait in the kernel, or another child serves them.
        until = time.monotonic() + REDIS_SECONDS
        while not (self._redis_ready() or self.stopping) and time.monotonic() < until:
            yield deferLater(self._reactor, 0.02)
        if self.stopping:
            return
        if self._parent is not None:
            self._strangers = self._parent.warnings
            self._parent.listen(self._connection_limit, self._ports, self._layers)
        for port in self._paused_ports:
            port.startReading()

    @inlineCallbacks
    def _bind(self) -> Any:
        """Open the ports. They do not accept connections yet."""
        config = self.config
        strings = endpoints_of(config, self._environ)
        # systemd keeps its sockets open, and the next daemon serves the connections that wait there.
        self._handed_over = not config.listen and strings[0].startswith("systemd:")
        for text in strings:
            port = yield listen_on(self._reactor, text, self._connection_limit, self._layers)
            self._ports.append(port)
            if hasattr(port, "stopReading"):  # a third-party endpoint may not have it
                port.stopReading()
                self._paused_ports.append(port)
            log.info("listening on {address}", address=address_text(port.getHost()))
        self._warn_of_strangers([port.getHost() for port in self._ports])

    def _warn_of_strangers(self, addresses: list[Any]) -> None:
        allowed = self.config.allow_anonymous
        self._strangers = check_public(addresses, has_tokens=self._gate.is_closed, allow_anonymous=allowed)
        for text in self._strangers:
            log.critical("{text}", text=text)

    def _all_warnings(self) -> list[str]:
        """What an operator should know now."""
        strangers = [] if self._gate.is_closed else self._strangers
        return strangers + self._warnings + self._overlaps + self._tokens.warnings + self._layers.warnings

    def _is_anonymous(self) -> bool:
        """Whether everybody in the network may do everything."""
        return bool(self._strangers) and not self._gate.is_closed

    def _refused_ago(self) -> float | None:
        """How long ago Redis was full and refused a push, s."""
        at = self.server.refused_at.get("redis_full")
        return None if at is None else time.monotonic() - at

    def _redis_ready(self) -> bool:
        return self._store.ready and self._pool.ready

    def _cannot_start(self, failure: Any) -> None:
        self._give_up(startup_error(failure.value), failure)

    def _give_up(self, why: str, failure: Any = None) -> None:
        if failure is not None and not failure.check(RegistryError, CannotListenError, ValueError, OSError):
            log.failure("the daemon cannot start", failure)
        log.critical("registry stops: {why}", why=why)
        self._fail(why)

    def reload(self) -> None:
        """Read again what can change while the daemon runs: SIGHUP."""
        log.info("SIGHUP: the tokens file and the certificates are read again")
        self._tokens.read_again()
        self._layers.read_again()

    def _tokens_changed(self) -> None:
        if self._built:
            self.server.tokens_changed()
            if self._store.ready:
                self._learn_secret()

    # Stop

    @inlineCallbacks
    def _stop(self) -> Any:
        self._notifier.stopping()
        log.info("registry stops: it refuses new connections and answers parked polls")
        if self._built:
            self.queues.draining = True
            if not self._handed_over:
                for port in self._ports:
                    accept_waiting(port)
        yield DeferredList([d for d in (port.stopListening() for port in self._ports) if d is not None])
        if self._built:
            self.server.drain()
            self.queues.batching.stop_holding()
            self.queues.polls.end_all()
            self.queues.orders.end_all()
            self.events.end_all()
            self._completions.end_all()
            deadline = time.monotonic() + DRAIN_SECONDS
            until = time.monotonic() + LAST_SECONDS
            while time.monotonic() < deadline:
                under_way = self.server.under_way or not self.queues.settled
                if not under_way and time.monotonic() >= until:
                    break
                yield deferLater(self._reactor, 0.02)
            self.server.close_idle()
            while self.server.connections and time.monotonic() < deadline:
                yield deferLater(self._reactor, 0.02)
            if self._access is not None:
                self._access.flush()
            self._sweeper.stop()
            self._stalls.stop()
            self._tokens.stop()
            self._address.stop()
            if self._store.ready:
                for write in (self._last_used.write, self._stats.write):
                    yield write().addErrback(lambda failure: failure.trap(RegistryError))
            for part in (self._subscriber, self._pool, self._link):
                yield part.stop()
        if self._embedded is not None:
            yield self._embedded.stop()
        self._notifier.close()
        log.info("registry has stopped")


def _limits(config: Config) -> Callable[[str], int]:
    """A function from the ``body`` of a `Route` to the size of the largest one, in bytes."""
    # A request about a lease is read even if its body is larger than what is kept of it.
    largest = max(config.max_batch_bytes, config.max_task_bytes, config.max_result_bytes)
    return {"task": config.max_task_bytes, "batch": config.max_batch_bytes, "result": largest}.__getitem__


def host_allowed(allowed: tuple[str, ...]) -> Callable[[bytes], bool]:
    """A function that says whether a Host (lower case, no port) is allowed: a loopback name, or one of ``allowed``.

    ``*`` in ``allowed`` allows any.
    """
    names = {name.lower().encode() for name in allowed}

    def check(host: bytes) -> bool:
        if host == b"localhost" or host.endswith(b".localhost"):
            return True
        return host in names or b"*" in names or is_loopback(host.decode("ascii", "replace"))

    return check


def _replicas(config: Config) -> Replicas | None:
    return Replicas(config.replicas_ack, config.replicas_ack_ms) if config.replicas_ack else None


def _fsync(word: str) -> Literal["always", "everysec"]:
    return "everysec" if word == "everysec" else "always"
