"""The API reference that the daemon serves: the OpenAPI document, and a page that draws it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from registry.config import Config
from registry.http.codec import Answer
from registry.http.request import Request, Route
from registry.http.static import MEDIA, File, answer_with, file_of


class Reference:
    """Made when it is first asked for: most daemons never are, and it takes some memory."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._files: tuple[File, File] | None = None

    def document(self, routes: Sequence[Route], request: Request) -> Answer:
        """The OpenAPI document of these routes."""
        return answer_with(self._made(routes)[0], request)

    def page(self, routes: Sequence[Route], request: Request) -> Answer:
        """The same for people."""
        return answer_with(self._made(routes)[1], request)

    def _made(self, routes: Sequence[Route]) -> tuple[File, File]:
        if self._files is None:
            from registry.http.openapi.document import Document
            from registry.http.openapi.page import Page

            document = Document(routes, self._config).build()
            html = Page(routes, document, f"localhost:{self._config.port}").html()
            text = json.dumps(document, separators=(",", ":"))
            self._files = file_of(text.encode(), MEDIA[".json"]), file_of(html.encode(), MEDIA[".html"])
        return self._files
