"""The first seconds of a daemon: where it listens, what it waits for, and what it says when it cannot start."""

from __future__ import annotations

from tests.conftest import StartDaemon
from tests.live import RedisServer, wait_until
from tests.test_end_to_end import Asked, push


def test_the_first_request_after_a_start_waits_for_redis(
    daemon: StartDaemon, redis_server: RedisServer
) -> None:
    redis_server.pause()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    first = Asked(one, "PUT", "/api/pushTask/q", b"1")
    assert first.waits(0.5)
    redis_server.resume()
    assert first.answer().status == 200


def test_without_redis_it_serves_all_the_same(daemon: StartDaemon, redis_server: RedisServer) -> None:
    redis_server.kill()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    answer = push(one, 1)
    assert answer.status == 503
    assert answer.json["code"] == "redis_unavailable"


def test_a_stop_while_it_waits_for_redis_is_clean(daemon: StartDaemon, redis_server: RedisServer) -> None:
    redis_server.kill()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    assert one.terminate(10) == -15
    assert "Traceback" not in one.log
