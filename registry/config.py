"""One frozen, checked Config from four places: defaults < ``.env`` < environment < command line.

``.env`` is only read, never exported: a child process (the embedded Redis) does not see it. An empty
value, wherever it is given, means the default, so that ``REDIS_URL= twistd -n registry`` undoes a ``.env``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from dotenv import dotenv_values

from registry.errors import RegistryError

LOG_LEVELS = ("debug", "info", "warn", "error", "critical")


class ConfigError(RegistryError):
    """A setting that cannot be used; the sentence names it, its value, its source, and what it must be."""

    code = "bad_config"


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """Every setting of the daemon, checked. Durations are seconds, sizes are bytes.

    A field is read from the variable of its name in upper case. ``redis_url`` None means the embedded Redis,
    ``listen`` empty means TCP on ``host`` and ``port``, ``redis_server`` None means: find one.
    """

    data_dir: str
    host: str = "127.0.0.1"
    port: int = 3000
    listen: tuple[str, ...] = ()
    broker: str = "redis"
    redis_url: str | None = None
    redis_fsync: str = "always"
    queue_timeout: float = 10.0
    max_wait: float = 55.0
    pool_max: int = 10
    max_task_bytes: int = 1048576
    key_prefix: str = ""
    access_log: bool = True
    log_level: str = "info"
    allowed_hosts: tuple[str, ...] = ()
    processes: int = 1
    redis_server: str | None = None

    def describe(self) -> dict[str, str]:
        """Variable name -> value as text, in the order of the fields, the password in REDIS_URL masked."""
        shown: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "redis_url":
                text = mask_url(value) if value else "(embedded)"
            elif isinstance(value, tuple):
                text = (" " if field.name == "listen" else ",").join(value)
            elif isinstance(value, bool):
                text = "yes" if value else "no"
            elif isinstance(value, float):
                text = f"{value:g}"
            else:
                text = "" if value is None else str(value)
            shown[field.name.upper()] = text
        return shown

    def secrets(self) -> tuple[str, ...]:
        """The texts that no log may show: the Redis password as written in the URL and as decoded."""
        return _passwords(self.redis_url) if self.redis_url else ()

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.describe().items())})"


# Greedy up to the last @, because a password that was not percent-encoded may hold one.
_USERINFO = re.compile(r"(?<=://)([^:@/?#]*)(:.*)?@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"(?i)([?&]password=)[^&#\s]*")


def mask_url(url: str) -> str:
    """``redis://user:secret@host`` -> ``redis://user:***@host``. Also right for a URL that is no URL at all.

    A lone name before the @ is masked too: some programs take it for the password. So is ``?password=``.
    """
    masked = _USERINFO.sub(lambda m: f"{m[1]}:***@" if m[2] else "***@", url)
    return _QUERY_PASSWORD.sub(r"\1***", masked)


def _passwords(url: str) -> tuple[str, ...]:
    found: set[str] = set()
    match = _USERINFO.search(url)
    if match:
        found.add(match[2][1:] if match[2] else match[1])
    try:
        found.update(parse_qs(urlsplit(url).query).get("password", ()))
    except ValueError:
        pass
    found.update([unquote(text) for text in found])
    return tuple(sorted(filter(None, found), key=len, reverse=True))


# One parser per kind of value; a ValueError's text is what the value must be.


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if low <= value <= high:  # False for NaN
            return value
        raise ValueError(f"a number of seconds from {low:g} to {high:g}")

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in words:
            return text.lower()
        raise ValueError(f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0])

    return parse


def _yes_no(text: str) -> bool:
    word = text.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("yes or no (also 1/0, true/false, on/off)")


def _broker(text: str) -> str:
    if text.lower() == "redis":
        return "redis"
    raise ValueError("redis, the only broker there is")


def _level(text: str) -> str:
    return "warn" if text.lower() == "warning" else _one_of(*LOG_LEVELS)(text)


def _host(text: str) -> str:
    if re.fullmatch(r"[^\s/\x00-\x1f]+", text) and "://" not in text:
        return text
    raise ValueError("an address or a host name, such as 127.0.0.1, 0.0.0.0 or ::")


def _prefix(text: str) -> str:
    if text.isprintable() and not set(text) & {"{", "}"} and len(text.encode()) <= 100:
        return text
    raise ValueError("at most 100 bytes of printable text without braces")


def _allowed_hosts(text: str) -> tuple[str, ...]:
    names = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.lower().rstrip(".")
        if name == "*":  # any name at all: no more shield against DNS rebinding
            names.append(name)
            continue
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        elif name.count(":") == 1 or re.search(r"[\s/\[\]*]|[^\x21-\x7e]", name) or not name:
            raise ValueError("host names with commas between them, without a scheme or a port; or * for any")
        names.append(name)
    return tuple(names)


def _processes(text: str) -> int:
    if text.lower() == "auto":
        return len(os.sched_getaffinity(0))
    try:
        return _whole(1, 64)(text)
    except ValueError:
        raise ValueError("a whole number from 1 to 64, or auto for one per core") from None


def _redis_url(text: str) -> str:
    must = ValueError(
        "a URL such as redis://:password@host:6379/0, rediss://host:6380 or unix:///run/redis.sock?db=0"
    )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise must from None
    if not text.isprintable() or (port is not None and port == 0):
        raise must
    if parts.scheme in ("redis", "rediss") and text[len(parts.scheme) :].startswith("://"):
        return text
    if parts.scheme == "unix" and parts.path.startswith("/"):
        return text
    raise must


def _path(text: str) -> str:
    if "\x00" in text:
        raise ValueError("a path")
    return os.path.abspath(os.path.expanduser(text))


def _listen(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Setting(NamedTuple):
    """One variable: its name in the environment and how its text becomes the value of the field."""

    name: str
    parse: Callable[[str], Any]


SETTINGS = (
    Setting("HOST", _host),
    Setting("PORT", _whole(0, 65535)),
    Setting("LISTEN", _listen),
    Setting("BROKER", _broker),
    Setting("REDIS_URL", _redis_url),
    Setting("REDIS_FSYNC", _one_of("always", "everysec")),
    Setting("DATA_DIR", _path),
    Setting("QUEUE_TIMEOUT", _seconds(0, 3600)),
    Setting("MAX_WAIT", _seconds(0, 3600)),
    Setting("POOL_MAX", _whole(1, 1000)),
    Setting("MAX_TASK_BYTES", _whole(1, 256 * 1024 * 1024)),
    Setting("KEY_PREFIX", _prefix),
    Setting("ACCESS_LOG", _yes_no),
    Setting("LOG_LEVEL", _level),
    Setting("ALLOWED_HOSTS", _allowed_hosts),
    Setting("PROCESSES", _processes),
    Setting("REDIS_SERVER", _path),
)
# Read besides the settings: a file that holds the URL, so that no password stands in an environment.
REDIS_URL_FILE = "REDIS_URL_FILE"


class _Layer(NamedTuple):
    source: str
    values: dict[str, str | tuple[str, ...]]


def load(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    env_file: str | None = ".env",
) -> Config:
    """Build the Config, or raise ConfigError with one sentence.

    ``options``: what the command line gave, by field name (``queue_timeout`` or ``queue-timeout``); None is
    "not given", a list (``listen`` given several times) is taken as it is; keys that are no setting are
    ignored.
    ``env_file``: a path, which need not exist, or None for none.
    """
    layers = [
        _Layer("from the command line", _given(options)),
        _Layer("from the environment", {name: environ[name] for name in _names() if name in environ}),
        _Layer(f"from {env_file}", _read_env_file(env_file)),
    ]
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.name == "REDIS_URL":
            found = _find_redis_url(layers)
        else:
            found = _find(layers, setting.name)
        if found is not None:
            values[setting.name.lower()] = _parse(setting, *found)
    values.setdefault("data_dir", _default_data_dir(environ))
    config = Config(**values)
    return dataclasses.replace(config, max_wait=max(config.max_wait, config.queue_timeout))


def _names() -> Iterable[str]:
    yield from (setting.name for setting in SETTINGS)
    yield REDIS_URL_FILE


def _given(options: Mapping[str, object]) -> dict[str, str | tuple[str, ...]]:
    known = set(_names())
    given: dict[str, str | tuple[str, ...]] = {}
    for key, value in options.items():
        name = key.replace("-", "_").upper()
        if name not in known or value is None:
            continue
        if isinstance(value, (list, tuple)):
            if value:  # none given: the next layer speaks
                given[name] = tuple(str(item) for item in value)
        else:
            given[name] = str(value)
    return given


def _read_env_file(env_file: str | None) -> dict[str, str | tuple[str, ...]]:
    if env_file is None:
        return {}
    try:
        # No interpolation: a password may hold ${...}, and the program of 2018 did not expand it either.
        read = dotenv_values(env_file, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The file {env_file} cannot be read: {reason}.") from None
    known = set(_names())
    return {name: value for name, value in read.items() if name in known and value is not None}


def _find(layers: list[_Layer], name: str) -> tuple[str | tuple[str, ...], str] | None:
    """The value of the highest layer that has the name, and its source; None for the default."""
    for layer in layers:
        if name in layer.values:
            value = layer.values[name]
            if isinstance(value, str):
                value = value.strip()
            return (value, layer.source) if value else None
    return None


def _find_redis_url(layers: list[_Layer]) -> tuple[str | tuple[str, ...], str] | None:
    for layer in layers:
        url, file = layer.values.get("REDIS_URL"), layer.values.get(REDIS_URL_FILE)
        if url and file:
            raise ConfigError(f"REDIS_URL and REDIS_URL_FILE are both given ({layer.source}): give only one.")
        if file:
            return _read_secret(str(file).strip(), layer.source)
        if url is not None:
            return _find([layer], "REDIS_URL")
    return None


def _read_secret(path: str, source: str) -> tuple[str, str]:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            text = file.read(65536).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        sentence = f"REDIS_URL_FILE is {_quoted(path)} ({source}): it cannot be read: {reason}."
        raise ConfigError(sentence) from None
    if not text:
        # Falling back to the embedded Redis would put tasks where nobody looks for them.
        raise ConfigError(f"REDIS_URL_FILE is {_quoted(path)} ({source}): the file is empty.")
    return text, f"from the file {path}"


def _parse(setting: Setting, value: str | tuple[str, ...], source: str) -> Any:
    if isinstance(value, tuple):
        if setting.name == "LISTEN":
            return value
        value = value[-1]
    try:
        return setting.parse(value)
    except ValueError as error:
        shown = mask_url(value) if setting.name == "REDIS_URL" else value
        raise ConfigError(f"{setting.name} is {_quoted(shown)} ({source}): it must be {error}.") from None


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 200 else text[:200] + "...")


def _default_data_dir(environ: Mapping[str, str]) -> str:
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd gives several with colons between them
    if state:
        return state
    data_home = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data_home):  # its specification: a relative one is to be ignored
        return os.path.join(data_home, "registry")
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".local", "share", "registry")
