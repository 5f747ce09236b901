"""An invalid setting: one sentence that says what to change and never shows a password."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from registry.config import ConfigError, load, warnings
from registry.endpoints import addresses_of, endpoints_of
from registry.redis.address import parse_redis_url
from registry.tap import Options
from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, bare_environment, wait_until
from tests.test_address import certificates

HOME = {"HOME": "/home/ada"}
SECRET = "hunter2"


def start(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """twistd registry with these, in an empty folder; it ends at once."""
    code = "from twisted.scripts.twistd import run; run()"
    return subprocess.run(
        [sys.executable, "-c", code, "-n", "--pidfile=", "registry", *options],
        cwd=folder, env={**bare_environment(folder), **environ}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that it said."""
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(("registry: ", "registry stops: ")) and line.endswith(".")
    return line


# --- secrets ---

NO_URLS = [
    "{}",
    ":{}@h",
    "{}@h:6379",
    "redis:{}@h",
    "redis:/:{}@h",
    "redis//:{}@h",
    "redis://:{}",
    "redis://h:{}",
    "redis://:{}/x@h",
    "redis://:12/{}@h",
    "redis://:{}#x@h",
    "redis://:{}?x@h",
    "redis://u:[{}@h",
    "redis://ada:{}@h:99999",
    "redis://ada:{}@h:port",
    "redis://{}@h",
    "redis://u:x@h/0?{}",
    "redis://u:x@h/{}",
    "redis://h?pass={}",
    "redis://h?auth={}&db=0",
    "unix:///run/x?password=a&{}",
    "unix://{}",
    "http://:{}@h",
    "redis://:x@h\n{}",
    "Redis ist auf h, {}",
]


@pytest.mark.parametrize("text", NO_URLS)
def test_what_is_no_url_is_not_shown_wherever_it_comes_from(tmp_path: Path, text: str) -> None:
    text = text.format(SECRET)
    file = tmp_path / "url"
    file.write_text(text + "\n")
    env_file = tmp_path / ".env"
    env_file.write_text(f"REDIS_URL={text!r}\n")
    for options, environ, path in (
        ({"redis_url": text}, {}, None),
        ({"redis_url_file": str(file)}, {}, None),
        ({}, {"REDIS_URL": text}, None),
        ({}, {"REDIS_URL_FILE": str(file)}, None),
        ({}, {}, str(env_file)),
    ):
        with pytest.raises(ConfigError) as caught:
            load(options, {**HOME, **environ}, path)
        sentence = str(caught.value)
        assert SECRET not in sentence and "\n" not in sentence and sentence.startswith("REDIS_URL is ")
        # nor by what it was raised from
        assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_password_alone_is_reported_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(SECRET)
    said = refused(start(tmp_path, REDIS_URL_FILE=f"{tmp_path}/url"))
    assert said.startswith(
        f'registry: REDIS_URL is "***" (from the file {tmp_path}/url): it must be a URL such as redis://:'
    )


@pytest.mark.parametrize("password", ["a/b", "1/b", "a#b", "a?b", "1?b", "a[b"])
def test_a_password_that_needs_escaping_gets_a_hint(password: str) -> None:
    with pytest.raises(ConfigError, match=r"%2F %40 %3A %23 %3F"):
        load({}, {**HOME, "REDIS_URL": f"redis://:{password}@h:6379/0"}, None)


# --- .env ---


def test_what_changes_nothing_in_an_env_file_is_reported(tmp_path: Path) -> None:
    path = str(tmp_path / ".env")
    Path(path).write_text(
        f"\ufeffPORT=81\n\n# {SECRET}\nQUEUE_TIMOUT=5\nqueue_timeout=6\nNODE_ENV={SECRET}\nexport POOL_MAX=7\n"
        f"{SECRET}\nMAX_WAIT 9 {SECRET}\nKEY_PREFX='{SECRET}'\nDATADIR=/x\n"
    )
    config = load({}, HOME, path)
    assert (config.port, config.pool_max, config.queue_timeout) == (81, 7, 10)
    said = warnings({}, path)
    assert SECRET not in str(said)
    assert said == [
        f"Line 8 of {path} is not NAME=value and has no effect.",
        f"Line 9 of {path} is not NAME=value and has no effect.",
        f"QUEUE_TIMOUT in {path} has no effect; did you mean QUEUE_TIMEOUT?",
        f"queue_timeout in {path} has no effect; did you mean QUEUE_TIMEOUT?",
        f"NODE_ENV in {path} has no effect: no setting has this name.",
        f"KEY_PREFX in {path} has no effect; did you mean KEY_PREFIX?",
        f"DATADIR in {path} has no effect; did you mean DATA_DIR?",
    ]


def test_the_environment_of_other_programs_is_left_alone(tmp_path: Path) -> None:
    others = """HOSTNAME HOSTS PORTS SHELL HOME PATH LISTEN_FDS LISTEN_PID LISTEN_FDNAMES REGISTRY_PORT REDIS_HOST REDIS_PORT
        REDIS_PASSWORD XDG_DATA_DIRS XDG_DATA_HOME LOGNAME PROCESSOR NUMBER_OF_PROCESSORS TIMEOUT LOG DATA HOSTTYPE"""
    (tmp_path / ".env").mkdir()  # somebody's virtual environment
    assert warnings(dict.fromkeys(others.split(), "1"), str(tmp_path / ".env")) == []
    said = warnings({"QUEUE_TIMOUT": SECRET, "REDIS_URL_FIL": "x", "REDIS_ULR": SECRET}, None)
    assert said == [
        "QUEUE_TIMOUT in the environment has no effect; did you mean QUEUE_TIMEOUT?",
        "REDIS_URL_FIL in the environment has no effect; did you mean REDIS_URL_FILE?",
        "REDIS_ULR in the environment has no effect; did you mean REDIS_URL?",
    ]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_daemon_warns_once_and_starts(
    daemon: StartDaemon, redis_server: RedisServer, processes: str
) -> None:
    env = {"ALLOWED_HOST": "x"}
    one = daemon(f"--processes={processes}", redis=redis_server, env=env, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its start")
    one.redis_ready()
    (line,) = [line for line in one.log.splitlines() if "ALLOWED_HOST " in line]
    assert re.search(
        r"#warn\] (parent: )?ALLOWED_HOST in the environment has no effect; did you mean ALLOWED_HOSTS\?",
        line,
    )


# --- the command line, and files ---


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--queue-timout=5", "option --queue-timout not recognized; did you mean --queue-timeout?"),
        ("--frobnicate", "option --frobnicate not recognized; see twistd registry --help."),
        ("--port", "option --port requires argument; see twistd registry --help."),
        ("start", "Wrong number of arguments; see twistd registry --help."),
    ],
)
def test_an_unknown_option_is_one_line(option: str, said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions([option])
    assert ended.value.code == f"registry: {said}"


@pytest.mark.parametrize(
    ("name", "text", "must"),
    [
        ("QUEUE_TIMEOUT", "5s", "a number of seconds from 0 to 3600"),
        ("QUEUE_TIMEOUT", "1h", "a number of seconds from 0 to 3600"),
        ("MAX_TASK_BYTES", "1MB", "a whole number from 1 to 268435456"),
        ("PORT", "99999", "a whole number from 0 to 65535"),
        ("HOST", "127.0.0.1:3000", "a host name without a port"),
        ("HOST", "*", "such as 127.0.0.1, 0.0.0.0 or ::"),
        ("PROCESSES", "two", "or auto for one per core"),
        ("REDIS_FSYNC", "no", "always or everysec"),
    ],
)
def test_a_wrong_value_is_one_sentence(name: str, text: str, must: str) -> None:
    for options, environ, source in (
        ({name.lower(): text}, {}, "the command line"),
        ({}, {name: text}, "the environment"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(options, {**HOME, **environ}, None)
        said = str(caught.value)
        assert said.startswith(f'{name} is "{text}" (from {source}): it must be ') and must in said


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its certificate in one file."""
    folder = tmp_path_factory.mktemp("pem")
    certificates(folder)
    file = folder / "both.pem"
    file.write_bytes((folder / "server.key").read_bytes() + (folder / "server.crt").read_bytes())
    return file


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        ("tcp:abc", "which cannot be used: 'abc' is not a number."),
        ("tcp:3000:backlog=x", "which cannot be used: 'x' is not a number."),
        ("unix:/tmp/r.sock:mode=999", "which cannot be used: '999' is not an octal number such as 660."),
        ("tcp:70000", "which cannot be used: 70000 is not a port number (0 to 65535)."),
        ("3000", "Write an address and a port as tcp:3000:interface=127.0.0.1,"),
        ("127.0.0.1:3000", "Write an address and a port as tcp:3000:interface=127.0.0.1,"),
        ("tcp", "whose parts do not fit the type tcp."),
        ("ssl:0:privateKey=/no/key", "which cannot be used: /no/key: No such file or directory."),
        (
            "ssl:0:privateKey=/etc/passwd",
            "which cannot be used: privateKey and certKey must name PEM files: ",
        ),
        ("ssl:0:privateKey={pem}:dhParameters=/no/file", "so does dhParameters."),
        ("ssl:0:privateKey={pem}:sslmethod=x", "'x' is not a method such as TLSv1_2_METHOD."),
        ("ssl:0:privateKey={pem}:sslmethod=", "'' is not a method such as TLSv1_2_METHOD."),
        ("unix:/tmp/r.sock:mode=-1", "which cannot be used: its mode must be from 0 to 777."),
        ("unix:/tmp/r.sock:mode=7777777", "which cannot be used: its mode must be from 0 to 777."),
        ("stdio", "which cannot be used: it serves only one client."),
        ("haproxy:tcp:70000", "which cannot be used: 70000 is not a port number"),
        ("systemd:domain=INET:index=0", "which cannot be used: systemd passed no such socket."),
        ("systemd:domain=INET:name=web", "which cannot be used: systemd passed no such socket."),
        ("a=b", "which cannot be used: it cannot be read."),
    ],
)
def test_a_bad_listen_is_one_sentence(pem: Path, listen: str, said: str) -> None:
    listen = listen.format(pem=pem)
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions([f"--listen={listen}"])
    line = str(ended.value.code)
    assert line.startswith(f"registry stops: LISTEN contains {listen!r}, w") and said in line
    assert line.endswith(".") and "\n" not in line


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LISTEN", "tcp:abc", "LISTEN contains 'tcp:abc'"),
        ("LISTEN", "ssl:0:privateKey=/etc/passwd", "name PEM files: a key without a passphrase"),
        ("REDIS_URL", "rediss://h/0?cafile=/nonexistent", "its cafile /nonexistent cannot be read"),
        ("REDIS_URL", f"redis://:{SECRET}/x@h:6379/0", "%2F %40 %3A"),
        ("QUEUE_TIMEOUT", "5s", "it must be a number of seconds from 0 to 3600"),
    ],
)
def test_nothing_else_is_said(tmp_path: Path, name: str, value: str, said: str) -> None:
    for processes in ("1", "2") if value == "tcp:abc" else ("1",):
        line = refused(start(tmp_path, f"--processes={processes}", **{name: value}))
        assert said in line and SECRET not in line


def test_a_port_in_use_is_reported_once(daemon: StartDaemon, redis_server: RedisServer) -> None:
    first = daemon(redis=redis_server)
    one = daemon(f"--port={first.port}", redis=redis_server, wait=False)
    assert one.wait(20) == 1
    assert one.log.count("Cannot listen on") == 1


def test_files_that_the_url_names(tmp_path: Path) -> None:
    no_pem, made = tmp_path / "no.pem", tmp_path / "made"
    no_pem.write_text("nothing")
    made.mkdir()
    for query, said in (
        ("cafile=/nonexistent", "its cafile /nonexistent cannot be read: No such file or directory."),
        ("certfile=/nonexistent", "its certfile /nonexistent cannot be read: No such file or directory."),
        (f"certfile={no_pem}&keyfile=/nonexistent", "its keyfile /nonexistent cannot be read: No such"),
        (f"cafile={made}", f"its cafile {made} cannot be read: Is a directory."),
        (f"cafile={no_pem}", f"cafile {no_pem} cannot be used: they must be PEM files"),
        (f"certfile={no_pem}", f"certfile {no_pem} and keyfile {no_pem} cannot be used"),
        (f"keyfile={no_pem}", "it has a keyfile and no certfile."),
    ):
        with pytest.raises(SystemExit) as ended:
            Options().parseOptions([f"--redis-url=rediss://:{SECRET}@127.0.0.1:1/0?{query}"])
        line = str(ended.value.code)
        assert line.startswith("registry: REDIS_URL names a file that cannot be used: ") and said in line
        assert SECRET not in line
    parse_redis_url("rediss://h").check_files()


# --- HOST ---


def listens_on(one: Daemon, place: str) -> None:
    wait_until(lambda: f"listening on {place}" in one.log, 20, place)


def test_localhost_is_both_families(daemon: StartDaemon, redis_server: RedisServer) -> None:
    if len(addresses_of("localhost")) < 2:
        pytest.skip("no IPv6 loopback here")
    for processes in ("1", "2"):
        one = daemon(f"--processes={processes}", redis=redis_server, env={"HOST": "localhost"})
        listens_on(one, f"127.0.0.1:{one.port}")
        listens_on(one, f"[::1]:{one.port}")
    strings = endpoints_of(load({"host": "localhost", "port": "0"}, HOME, None), {})
    assert len({text.split(":")[1] for text in strings}) == 1 and ":0:" not in strings[0]


def test_a_host_that_is_no_address() -> None:
    assert addresses_of("::1") == ["::1"] and addresses_of("0.0.0.0") == ["0.0.0.0"]
    assert load({"host": "[::1]"}, HOME, None).host == "::1"
    with pytest.raises(
        ValueError, match=r'^HOST is "no\.such\.invalid", which has no address \(.*\): set it to'
    ):
        addresses_of("no.such.invalid")
