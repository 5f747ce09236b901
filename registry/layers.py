"""What lies between a listening socket and HTTP, as its endpoint string says: the PROXY protocol, then TLS."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from registry.endpoints import PROXY_PROTOCOL, cannot_be_used
from registry.http.proxies import Proxies
from registry.proxy_protocol import ProxyProtocolFactory
from registry.tls import Certificate

log = Logger()


class Layers:
    """Makes the layers of all listeners of this process. ``warnings``: a sentence for each certificate that is out of date."""

    def __init__(self, proxies: Proxies, reactor: Any) -> None:
        self.warnings: list[str] = []
        self._proxies = proxies
        self._reactor = reactor
        self._certificates: dict[str, Certificate] = {}

    def around(self, opens: Any, text: str) -> tuple[Any, str]:
        """A stand-in for the reactor-like ``opens``, and the endpoint string to listen on with it."""
        rest = text.removeprefix(PROXY_PROTOCOL)
        return _Layered(self, opens, rest, rest != text), rest

    def beneath(self, factory: Any) -> Any:
        """A factory that reads PROXY headers, then serves with ``factory``."""
        return ProxyProtocolFactory(factory, self._proxies.speaks_proxy_protocol, self._reactor)

    def certificate(self, text: str) -> Certificate:
        """The certificate of an endpoint string; all processes and ports of it use one."""
        if text not in self._certificates:
            self._certificates[text] = Certificate(text)
        return self._certificates[text]

    def read_again(self) -> None:
        """Read all certificates again. One that cannot be used leaves the old one in place."""
        self.warnings = []
        for text, certificate in self._certificates.items():
            try:
                certificate.read_again()
            except Exception as error:
                why = f"{cannot_be_used(text, error)} New connections still get the certificate that was read before."
                log.critical("{text}", text=why)
                self.warnings.append(why)
            else:
                log.info("the certificate of {text} is read again", text=text)


class _Layered:
    """Stands in for the reactor while an endpoint listens."""

    def __init__(self, layers: Layers, opens: Any, text: str, reads_headers: bool) -> None:
        self._layers = layers
        self._opens = opens
        self._text = text
        self._reads_headers = reads_headers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opens, name)

    def _beneath(self, factory: Any) -> Any:
        return self._layers.beneath(factory) if self._reads_headers else factory

    def listenTCP(self, port: int, factory: Any, *more: Any, **named: Any) -> Any:
        return self._opens.listenTCP(port, self._beneath(factory), *more, **named)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, *more: Any, **named: Any) -> Any:
        from twisted.protocols.tls import TLSMemoryBIOFactory  # pyOpenSSL is needed for TLS only

        tls: Any = TLSMemoryBIOFactory(self._layers.certificate(self._text), False, factory)
        return self.listenTCP(port, tls, *more, **named)

    def listenUNIX(self, address: str, factory: Any, *more: Any, **named: Any) -> Any:
        return self._opens.listenUNIX(address, self._beneath(factory), *more, **named)

    def adoptStreamPort(self, fd: int, family: int, factory: Any) -> Any:
        return self._opens.adoptStreamPort(fd, family, self._beneath(factory))
