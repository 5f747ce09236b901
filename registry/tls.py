"""TLS on the daemon's own listeners: at least TLS 1.2, and a certificate that can be replaced while connections are open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import _parse, serverFromString
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from zope.interface import implementer

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# They speak nothing that is at least TLS 1.2.
OLD_METHODS = frozenset(
    f"{name}{kind}_METHOD" for name in ("SSLv2", "SSLv3", "TLSv1", "TLSv1_1") for kind in ("", "_SERVER")
)


def make_context(text: str) -> Any:
    """The OpenSSL context of an endpoint string ``ssl:…``; raises whatever is wrong with its files.

    ``certKey`` may have the certificates of the issuers behind its own, as ACME clients write them.
    """
    from OpenSSL import SSL, crypto  # needed for TLS only

    endpoint: Any = serverFromString(None, text)  # type: ignore[arg-type]
    context = endpoint._sslContextFactory.getContext()
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    named = _parse(text)[1]
    if "extraCertChain" not in named:
        path = named.get("certKey") or named.get("privateKey") or "server.pem"
        for one in _CERTIFICATE.findall(Path(path).read_bytes())[1:]:
            context.add_extra_chain_cert(crypto.load_certificate(crypto.FILETYPE_PEM, one))
    return context


@implementer(IOpenSSLServerConnectionCreator)
class Certificate:
    """Key and certificate of one listener. A connection keeps those that it began with."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._context = make_context(text)

    def serverConnectionForTLS(self, protocol: Any) -> Any:
        from OpenSSL import SSL

        return SSL.Connection(self._context, None)

    def read_again(self) -> None:
        """Use what is in the files now; raises what is wrong with them, and then nothing changes."""
        self._context = make_context(self._text)
