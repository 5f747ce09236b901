"""``python -m registry.cli`` is `registryctl`."""

from registry.cli.main import run

if __name__ == "__main__":
    run()
