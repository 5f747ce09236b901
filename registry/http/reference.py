"""The API reference that the daemon serves: the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterable

from registry.config import Config
from registry.http.codec import Answer
from registry.http.request import Route


class Reference:
    """Made when it is first asked for: most daemons never are, and it takes some memory."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._document = b""

    def document(self, routes: Iterable[Route]) -> Answer:
        """The OpenAPI document of these routes."""
        if not self._document:
            from registry.http.openapi.document import Document

            found = Document(routes, self._config).build()
            self._document = json.dumps(found, separators=(",", ":")).encode()
        return Answer(200, self._document)
