"""Registers ``registry`` with twistd and twist. Strings only, because every Twisted tool imports this file."""

from twisted.application.service import ServiceMaker

registry = ServiceMaker(
    "registry",
    "registry.tap",
    "A task queue that any HTTP client can use, over Redis.",
    "registry",
)
