"""The parsers of settings, one per kind of value.

A parser takes the text without surrounding spaces. It raises ValueError, whose text says what the value must be.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from registry import machine
from registry.duration import milliseconds
from registry.redis.topology import parse_address

# In TRUSTED_PROXIES: whoever connects to a unix socket.
UNIX = "unix"
LOG_LEVELS = ("debug", "info", "warn", "error", "critical")


class Unusable(ValueError):
    """A ValueError whose text is a whole clause about the value; it is shown without "it must be" before it."""


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"a whole number from {low} to {high}")

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        ms = milliseconds(text)
        if ms is not None and low * 1000 <= ms <= high * 1000:
            return ms / 1000
        raise ValueError(f"a number of seconds from {low:g} to {high:g}")

    return parse


def memory(text: str) -> int:
    """Bytes; 0 for no limit."""
    match = re.fullmatch(r"([0-9]{1,18})\s*(?:([kmgt]?)(?:i?b)?|(%))", text.lower())
    if match:
        number = int(match[1])
        if match[3]:
            size = machine.memory() * number // 100 if number <= 100 else -1
        else:
            size = number * 1024 ** " kmgt".index(match[2] or " ")
        if size == 0 or 1 << 20 <= size < 1 << 62:
            return size
    raise ValueError(
        "a size such as 512mb or 2gb (at least 1mb), a share of this machine's memory such as 50%, or 0 for no limit"
    )


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in words:
            return text.lower()
        raise ValueError(f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0])

    return parse


def yes_no(text: str) -> bool:
    word = text.lower()
    if word in ("1", "yes", "true", "on"):
        return True
    if word in ("0", "no", "false", "off"):
        return False
    raise ValueError("yes or no (also 1/0, true/false, on/off)")


def broker(text: str) -> str:
    if text.lower() == "redis":
        return "redis"
    raise ValueError("redis, the only supported broker")


def level(text: str) -> str:
    return "warn" if text.lower() == "warning" else one_of(*LOG_LEVELS)(text)


def host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if re.fullmatch(r"[^\s/\x00-\x1f]+", text) and text.count(":") != 1 and "*" not in text:
        return text
    raise ValueError("an address or a host name without a port, such as 127.0.0.1, 0.0.0.0 or ::")


def prefix(text: str) -> str:
    if text.isprintable() and not set(text) & {"{", "}"} and len(text.encode()) <= 100:
        return text
    raise ValueError("at most 100 bytes of printable text without braces")


def allowed_hosts(text: str) -> tuple[str, ...]:
    names = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.lower().rstrip(".")
        if name == "*":  # any name, without protection against DNS rebinding
            names.append(name)
            continue
        if name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        elif name.count(":") == 1 or re.search(r"[\s/\[\]*]|[^\x21-\x7e]", name) or not name:
            raise ValueError("host names separated by commas, without a scheme or a port; or * for any")
        names.append(name)
    return tuple(names)


def trusted_proxies(text: str) -> tuple[str, ...]:
    """Networks in their usual form, and the word "unix"."""
    found = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        if part.lower() == UNIX:
            found.append(UNIX)
            continue
        try:
            network = ipaddress.ip_network(part)
        except ValueError:
            raise ValueError(
                "addresses and networks separated by commas, such as 10.0.0.5, 10.0.0.0/24 or ::1; or unix for unix sockets"
            ) from None
        found.append(str(network) if network.num_addresses > 1 else str(network.network_address))
    return tuple(found)


def base_path(text: str) -> str:
    """ "/registry"; "" for the root."""
    if re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", text) and not re.search(r"/\.\.?(/|$)", text):
        return text.rstrip("/")
    raise ValueError("a path such as /registry, of letters, digits and - . _ ~")


def label(text: str) -> str:
    if text.isprintable() and len(text) <= 30:
        return text
    raise ValueError("at most 30 printable characters")


def origins(text: str) -> tuple[str, ...]:
    """Origins as browsers write them: in lower case, without the usual port."""
    found = []
    for part in filter(None, re.split(r"[,\s]+", text.lower())):
        match = re.fullmatch(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", part)
        if match is None or int(match[3] or 0) > 65535:
            raise ValueError(
                "origins separated by commas, such as https://app.example or http://localhost:8080, without a path; * and null "
                "are not accepted"
            )
        usual = {"http": "80", "https": "443"}[match[1]]
        found.append(part if match[3] is None or match[3] != usual else part.rpartition(":")[0])
    return tuple(found)


def processes(text: str) -> int:
    if text.lower() == "auto":
        return len(os.sched_getaffinity(0))
    try:
        return whole(1, 64)(text)
    except ValueError:
        raise ValueError("a whole number from 1 to 64, or auto for one per core") from None


def redis_url(text: str) -> str:
    hint = ""
    if "@" in text or "password=" in text:
        hint = " (in a password, write / @ : # ? % & + as %2F %40 %3A %23 %3F %25 %26 %2B)"
    must = ValueError(
        f"a URL such as redis://:password@host:6379/0, rediss://host:6380 or unix:///run/redis.sock?db=0{hint}"
    )
    if "+sentinel:" in text and text.isprintable():
        return _address(text, hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise must from None
    if not text.isprintable() or port == 0 or not re.fullmatch(r"[\w.:%-]*", parts.hostname or ""):
        raise must
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise must
    if parts.scheme not in ("redis", "rediss", "unix") or not text[len(parts.scheme) :].startswith("://"):
        raise must
    return _address(text, hint)


def _address(text: str, hint: str) -> str:
    try:
        parse_address(text)
    except ValueError as error:
        raise Unusable(f"{error}{'' if '%2F' in str(error) else hint}") from None
    return text


def path(text: str) -> str:
    if "\x00" in text:
        raise ValueError("a path")
    return os.path.abspath(os.path.expanduser(text))


def listen(text: str) -> tuple[str, ...]:
    return tuple(text.split())
