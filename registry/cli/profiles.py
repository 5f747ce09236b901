"""The address to connect to, and the token: options, the environment, then a profile of ``~/.config/registry/config.toml``.

default = "staging"              # the profile to use if none is named

[profiles.staging]
url = "https://registry.example.org"
token = "rgy_…"                  # or token_file = "/path"
ca_file = "/etc/ssl/own-ca.pem"  # optional
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from registry.cli.errors import BadUsage

DEFAULT_URL = "http://127.0.0.1:3000"
_FIELDS = ("url", "token", "token_file", "ca_file")
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Target:
    """A server, and the token for it, "" for none. ``origin`` says where the address comes from."""

    url: str
    token: str = ""
    ca_file: str = ""
    origin: str = ""
    # Why an existing token was not used.
    withheld: str = ""

    def __repr__(self) -> str:
        return f"<Target {self.url}>"


def config_path(environ: Mapping[str, str]) -> Path:
    """The file of the profiles."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".config"
    )
    return Path(base) / "registry" / "config.toml"


def read_config(path: Path) -> dict[str, Any]:
    """The file's tables, {} if there is none. Refuses a file that others could read and that holds a token."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}.") from None
    try:
        config = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadUsage(f"{path} is not TOML: {error}.") from None
    profiles = config.get("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(one, dict) for one in profiles.values()):
        raise BadUsage(f"{path}: profiles are tables such as [profiles.staging].")
    for name, profile in profiles.items():
        for field, value in profile.items():
            if field not in _FIELDS:
                raise BadUsage(
                    f"{path}: the profile {name!r} has an unknown field {field!r}; it takes {', '.join(_FIELDS)}."
                )
            if not isinstance(value, str):
                raise BadUsage(f"{path}: {field} of the profile {name!r} is not a text.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and any("token" in one for one in profiles.values()):
        raise BadUsage(f"{path} holds a token and others can read it; change that: chmod 600 {path}")
    return config


def read_token_file(path: str) -> str:
    """The token in a file, whose white space does not count."""
    try:
        text = Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise BadUsage(f"The token file {path} cannot be read: {reason}.") from None
    if not text.strip():
        raise BadUsage(f"The token file {path} is empty.")
    return text.strip()


def find_target(
    environ: Mapping[str, str],
    *,
    url: str | None = None,
    profile: str | None = None,
    token_file: str | None = None,
    ca_file: str | None = None,
) -> Target:
    """The server to talk to. Options come first, then a profile named by an option, the environment, the default profile.

    The token of a profile is for the profile's own address only: it is not sent to another one.
    """
    path = config_path(environ)
    config = read_config(path)
    named = profile or environ.get("REGISTRY_PROFILE") or config.get("default")
    chosen: dict[str, str] = {}
    if named is not None:
        profiles = config.get("profiles", {})
        if named not in profiles:
            known = ", ".join(profiles) or "none"
            raise BadUsage(f"There is no profile {named!r} in {path}; there is: {known}.")
        chosen = profiles[named]
    of_profile = chosen.get("url", ""), f"the profile {named!r}"
    of_environ = environ.get("REGISTRY_URL", ""), "REGISTRY_URL"
    places = [(url or "", "--url"), of_environ, of_profile, (DEFAULT_URL, "the default")]
    if profile:
        places[1:3] = [of_profile, of_environ]
    address, origin = next(place for place in places if place[0])
    address = check_url(address, origin)

    own = chosen.get("token") or (read_token_file(chosen["token_file"]) if "token_file" in chosen else "")
    withheld = ""
    if own and address != check_url(chosen.get("url") or DEFAULT_URL, of_profile[1]):
        own, withheld = (
            "",
            f"The token of {of_profile[1]} was not sent: it is for that profile's address only.",
        )
    tokens = [environ.get("REGISTRY_TOKEN", "").strip(), own]
    if profile:
        tokens.reverse()
    if token_file:
        tokens.insert(0, read_token_file(token_file))
    token = next((one for one in tokens if one), "")
    if token and not _TOKEN.fullmatch(token):
        raise BadUsage("The token contains characters that no token has; is it cut or quoted?")
    ca = ca_file or environ.get("REGISTRY_CA_FILE") or chosen.get("ca_file") or ""
    return Target(address, token, ca, origin, "" if token else withheld)


def check_url(url: str, origin: str) -> str:
    """The address without a slash at its end; `BadUsage` for what cannot be one."""
    if url.startswith("unix:"):
        path = "/" + url.removeprefix("unix:").lstrip("/")
        if path == "/":
            raise BadUsage(f"{origin}: a unix socket is written unix:///path/of/the.sock")
        return f"unix://{path}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadUsage(f"{origin}: {url!r} is not an address.") from None
    if "@" in parts.netloc:
        raise BadUsage(f"{origin}: an address contains no password; the token goes into REGISTRY_TOKEN.")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise BadUsage(
            f"{origin}: {url!r} is not an address such as http://127.0.0.1:3000, https://… or unix:///path."
        )
    if parts.query or parts.fragment:
        raise BadUsage(f"{origin}: an address ends before its query: {url!r}.")
    return url.rstrip("/")
