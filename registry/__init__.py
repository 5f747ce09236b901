"""A task queue that any HTTP client can use: a Twisted daemon over Redis."""

__version__ = "1.0.0"
