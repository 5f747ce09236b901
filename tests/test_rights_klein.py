"""The rights hold in the Klein resource too, which any server of twisted.web may serve."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from registry.model.tokens import Token, hash_of
from tests.conftest import LoggedErrors
from tests.in_process import World, running
from tests.live import RedisServer


@pytest.fixture
def world(module_redis: RedisServer, tmp_path: Path, logged_errors: LoggedErrors) -> Iterator[World]:
    for one in running(module_redis, True, str(tmp_path), logged_errors):
        rights = {"pop": ("pop a*",), "view": ("view --no-payloads",), "push": ("push a*",)}
        one.daemon._gate.replace([Token(name, hash_of(name.encode()), rights[name]) for name in rights])
        yield one


@pytest_twisted.ensureDeferred
async def test_rights_hold_for_the_klein_resource(world: World) -> None:
    for who, method, path, status, says in (
        ("", "GET", "/healthz", 200, '"ok"'),
        ("", "GET", "/readyz", 200, '{"status":"ready"}'),
        ("", "GET", "/api/popTask/a?wait=0", 401, "unauthorized"),
        ("nobody", "GET", "/api/popTask/a?wait=0", 401, "unauthorized"),
        ("", "GET", "/nothing", 401, "unauthorized"),
        ("pop", "GET", "/nothing", 404, "not_found"),
        ("pop", "GET", "/api/popTask/a?wait=0", 202, "No tasks"),
        ("pop", "GET", "/api/popTask/b?wait=0", 403, "'pop' for the queue 'b'"),
        ("pop", "GET", "/api/popTasks/a,b?wait=0", 403, "'pop' for the queue 'b'"),
        ("pop", "GET", "/api/popTasks/a,%zz?wait=0", 400, "bad_name"),
        ("pop", "PUT", "/api/pushTask/a", 403, "'push' for the queue 'a'"),
        ("push", "PUT", "/api/pushTask/a", 200, "success"),
        ("push", "GET", "/api/queues", 403, "'view'"),
        ("view", "GET", "/api/queues/a/tasks", 200, '"hidden":true'),
        ("view", "DELETE", "/api/queues/a", 403, "'operate'"),
    ):
        headers = {"Authorization": f"Bearer {who}"} if who else {}
        answer = await world.ask(method, path, b"1" if method == "PUT" else None, **headers)
        assert answer.status == status and says in answer.body.decode(), (who, path, answer.body)
        assert (answer.header(b"WWW-Authenticate") == b"Bearer") is (status == 401)
