"""schemathesis makes valid and invalid requests from the OpenAPI document, and finds no answer that the document does not allow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.live import ROOT, Daemon, RedisServer
from tests.talk import running

pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def impatient(module_redis_process: RedisServer) -> Iterator[Daemon]:
    """A daemon whose polls wait for next to nothing."""
    with running(module_redis_process, MAX_WAIT="0.02", QUEUE_TIMEOUT="0.02") as one:
        yield one


@pytest.mark.timeout(240)
def test_no_answer_differs_from_the_document(impatient: Daemon) -> None:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(ROOT / "tests" / "schemathesis.toml"),
    ]
    command += ["run", f"{impatient.url}/openapi.json", "--no-color"]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=impatient.folder, env=env, check=False, timeout=220
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 500 " not in impatient.log
