"""Where to listen: turns HOST, PORT and LISTEN into endpoint strings, and checks them before anything is started."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from twisted.internet.endpoints import StandardIOEndpoint, serverFromString

from registry.config import Config
from registry.systemd import listen_fds

# An endpoint string that begins with this speaks the PROXY protocol.
PROXY_PROTOCOL = "haproxy:"
LOOPBACK = ("127.0.0.1", "::1")


def endpoints_of(config: Config, environ: Mapping[str, str]) -> list[str]:
    """The endpoint strings: LISTEN, else one per socket passed by systemd, else one per address of HOST.

    ValueError with one sentence when HOST has no address.
    """
    strings = list(config.listen) or listen_fds(environ)
    if strings:
        return strings
    addresses = addresses_of(config.host)
    port = config.port or (_free_port(addresses) if len(addresses) > 1 else 0)
    return [f"tcp:{port}:interface={address.replace(':', chr(92) + ':')}" for address in addresses]


def addresses_of(host: str) -> list[str]:
    """The IPv4 and IPv6 addresses of a name. ``localhost`` always means `LOOPBACK`, whatever /etc/hosts says."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
        return [host]
    except ValueError:
        pass
    if host.lower().rstrip(".") == "localhost":
        found = list(LOOPBACK)
    else:
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a host name"
            raise ValueError(
                f'HOST is "{host}", which has no address ({why}): set it to an address.'
            ) from None
        found = list(dict.fromkeys(str(one[4][0]) for one in infos))
    if len(found) == 1:
        return found
    # Some of them may not be usable on this machine: IPv6 may be switched off.
    return [address for address in found if _can_bind(address, 0)] or found[:1]


def _can_bind(address: str, port: int) -> int:
    """The port number that was bound for a test; 0 when the address or the port cannot be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        return 0 if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or port else 1


def _free_port(addresses: list[str]) -> int:
    """A port that is free at all addresses, because PORT=0 means one port for all of them; 0 when none was found."""
    for _ in range(50):
        port = _can_bind(addresses[0], 0)
        if all(_can_bind(address, port) for address in addresses[1:]):
            return port
    return 0


def check_listen(reactor: Any, config: Config) -> None:
    """Raise ValueError with one sentence when an endpoint string of LISTEN is invalid."""
    for text in config.listen:
        parse_endpoint(reactor, text)


def parse_endpoint(reactor: Any, text: str) -> Any:
    """Parse an endpoint string. ValueError with one sentence when it is invalid.

    AttributeError passes through when a stand-in for the reactor lacks the method that the endpoint needs.
    """
    try:
        endpoint: Any = serverFromString(reactor, text)
    except TypeError:
        # The parser of this endpoint type does not accept these arguments.
        raise ValueError(
            f"LISTEN contains {text!r}, whose parts do not fit the type {text.partition(':')[0]}. Write a colon in a part as "
            r"\:, and on a command line put it between single quotes."
        ) from None
    except AttributeError as error:
        if error.obj is reactor:
            raise
        # sslmethod: the parser looks its name up in pyOpenSSL.
        why = f"{error.name!r} is not a method such as TLSv1_2_METHOD"
        raise cannot_be_used(text, ValueError(why)) from None
    except Exception as error:
        raise cannot_be_used(text, error) from None
    _check_parts(text, endpoint)
    return endpoint


def _check_parts(text: str, endpoint: Any) -> None:
    """Check what Twisted does not check, or only when the first client connects."""
    endpoint = getattr(endpoint, "_wrappedEndpoint", endpoint)  # of haproxy:
    port, mode = getattr(endpoint, "_port", None), getattr(endpoint, "_mode", None)
    why = ""
    if isinstance(endpoint, StandardIOEndpoint):
        why = "it serves only one client"
    elif isinstance(port, int) and not 0 <= port <= 65535:
        why = f"{port} is not a port number (0 to 65535)"
    elif isinstance(mode, int) and not 0 <= mode <= 0o777:
        why = "its mode must be from 0 to 777"
    if why:
        raise cannot_be_used(text, ValueError(why))
    context = getattr(endpoint, "_sslContextFactory", None)
    if context is not None and re.search(r":sslmethod=(SSLv|TLSv1_(METHOD|SERVER|1_))", text):
        raise cannot_be_used(text, ValueError("the oldest TLS that is served is 1.2"))
    if context is not None:
        try:
            context.getContext()
        except Exception as error:
            raise cannot_be_used(text, error) from None


_WHY = {
    "systemd": "systemd passed no such socket",
    "ssl": "privateKey and certKey must name PEM files: a key without a passphrase, and its certificate; so does dhParameters",
}


def cannot_be_used(text: str, error: BaseException) -> ValueError:
    """A ValueError that quotes the endpoint string and says why it cannot be used."""
    why = str(error).rstrip(".")
    number = re.match(r"invalid literal for int\(\) with base (\d+): (.*)", why)
    if number:
        why = f"{number[2]} is not {'an octal number such as 660' if number[1] == '8' else 'a number'}"
    elif isinstance(error, OSError) and error.strerror:
        why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, OverflowError):
        why = "a number in it is too large"
    elif not isinstance(error, OSError | ValueError):
        # An internal error of a Twisted parser, such as an index out of range, does not help the user.
        why = _WHY.get(text.partition(":")[0], "it cannot be read")
    elif why.startswith("Unknown endpoint type"):
        why += ". Write an address and a port as tcp:3000:interface=127.0.0.1, a unix socket as unix:/run/registry/http.sock"
    return ValueError(f"LISTEN contains {text!r}, which cannot be used: {why}.")
