"""Where the tasks are stored: one server, or a master that Sentinels watch. What ``REDIS_URL`` may be."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import unquote

from registry.redis.address import RedisAddress, parse_redis_url
from registry.redis.sentinel import SentinelAddress

Address = RedisAddress | SentinelAddress

SENTINEL_PORT = 26379
# Options of a Sentinel URL that are for the connections to the Sentinels.
_OF_SENTINELS = ("sentinel_username", "sentinel_password", "sentinel_tls")
_SENTINEL_URL = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^@/?]*)(?:/(?P<master>[^/?]*))?"
    r"(?P<more>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(?::(\d{1,5}))?")


def parse_address(url: str) -> Address:
    """What `parse_redis_url` reads, or ``redis+sentinel://[user:password@]host[:port][,host[:port]…]/master?db=0``.

    ``rediss+sentinel`` uses TLS, also to the Sentinels unless ``sentinel_tls=0``. Options besides those of ``redis://`` and
    ``rediss://``: ``sentinel_username``, ``sentinel_password``, ``sentinel_tls``. Raises ValueError with one sentence that
    never shows a password.
    """
    url = url.strip()
    match = _SENTINEL_URL.fullmatch(url)
    if match is None:
        if "+sentinel:" in url.partition("/")[0]:
            raise ValueError("the Redis URL is not redis+sentinel://host:port,host:port/master")
        return parse_redis_url(url)
    if match["more"]:
        raise ValueError(
            "the Redis URL has more than the name of the master after the Sentinels (write ?db=1)"
        )
    master = unquote(match["master"] or "")
    if not master:
        raise ValueError("the Redis URL does not name the master, as in redis+sentinel://host:26379/mymaster")
    own, others = _split_options(match["query"] or "")
    scheme, user = match["scheme"], match["user"]
    server = parse_redis_url(
        f"{scheme}://{f'{user}@' if user is not None else ''}master/{f'?{others}' if others else ''}"
    )
    is_tls = own.get("sentinel_tls", "1" if scheme == "rediss" else "0").lower() in {"1", "yes", "true"}
    kind = "tls" if is_tls else "tcp"
    if is_tls and scheme == "redis":
        raise ValueError("the Redis URL has sentinel_tls, which needs rediss+sentinel://")
    password = own.get("sentinel_password") or None
    username = own.get("sentinel_username") or None
    if username is not None and password is None:
        raise ValueError("the Redis URL has a sentinel_username but no sentinel_password")
    sentinels = tuple(
        replace(server, kind=kind, host=host, port=port, username=username, password=password, db=0)
        for host, port in map(_host, match["hosts"].split(","))
    )
    return SentinelAddress(sentinels, master, server)


def _host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text.strip())
    port = int(match[2] or SENTINEL_PORT) if match is not None else 0
    if match is None or not 0 < port < 65536:
        raise ValueError("the Redis URL has a Sentinel that is not host or host:port")
    return unquote(match[1].strip("[]")), port


def _split_options(query: str) -> tuple[dict[str, str], str]:
    """The options for the Sentinels, decoded, and the other options as they were written."""
    own: dict[str, str] = {}
    others = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name in _OF_SENTINELS:
            own[name] = unquote(value)
        else:
            others.append(part)
    return own, "&".join(others)
