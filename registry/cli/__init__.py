"""``registryctl``: the command line, a client of the HTTP API. Of the daemon it imports nothing but ``registry.model``."""
