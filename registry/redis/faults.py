"""What is wrong with Redis, for those who use the registry: whose fault it is, and nothing of what stands behind it.

What the kernel, the TLS library or Redis itself said is for whoever runs the registry, and stands in the log and in ``/readyz``.
"""

from __future__ import annotations

import re

_RUNS = "; that is for whoever runs the registry to put right, and its log says more"
# The first that is found tells. What passes by itself says nothing of whoever runs the registry.
_FAULTS = tuple(
    (re.compile(pattern, re.IGNORECASE), text)
    for pattern, text in (
        (r"did not answer", "Redis does not answer"),
        (r"LOADING", "Redis is starting and still loads its data"),
        (r"\bBUSY\b", "Redis is kept busy by a script of another program"),
        (r"max number of clients", "Redis has as many clients as it takes"),
        (r"READONLY|MASTERDOWN", "the Redis that was found is a replica, which takes no writes"),
        (
            r"WRONGPASS|NOAUTH|invalid password|invalid username|no password is set|without any password",
            "Redis refuses the password that the registry has for it" + _RUNS,
        ),
        (r"NOPERM|no permissions", "Redis denies the registry's user a right that it needs" + _RUNS),
        (r"DENIED", "Redis takes no connections from where the registry runs" + _RUNS),
        (r"SSL|TLS|certificate", "the registry and Redis do not agree on TLS" + _RUNS),
        (r"DB index|SELECT", "Redis does not have the database that the registry is to use" + _RUNS),
        (r"not the Redis protocol|out of turn", "what answers in the place of Redis is no Redis" + _RUNS),
        (r"look-up|DNS", "the host name of Redis cannot be looked up" + _RUNS),
        (r"No such file|PEM", "the registry cannot read a file that it needs to reach Redis" + _RUNS),
        (
            r"keys in this Redis|is not the registry's",
            "the keys in Redis are not those of this registry" + _RUNS,
        ),
        (r"lost|closed|reset", "the connection to Redis was lost"),
        (r"connect", "Redis cannot be reached"),
    )
)


def public(text: str) -> str:
    """What a client is told of what the link says is wrong."""
    for pattern, told in _FAULTS:
        if pattern.search(text):
            return told
    return "the registry cannot use its Redis" + _RUNS


# What a word means with which Redis refuses a call.
_WORDS = {
    "MISCONF": "it cannot write to its disk" + _RUNS,
    "NOPERM": "the registry's user lacks a right" + _RUNS,
    "NOAUTH": "the registry did not give a password" + _RUNS,
    "NOREPLICAS": "too few of its replicas are there" + _RUNS,
    "READONLY": "it is a replica",
    "LOADING": "it still loads its data",
    "BUSY": "a script of another program keeps it busy",
    "MASTERDOWN": "it is a replica that has lost its master",
}


def refused(word: str) -> str:
    """What a client is told when Redis refused a call with this word."""
    means = _WORDS.get(word)
    return (
        f"Redis refused the request: {word}, {means}"
        if means
        else f"Redis refused the request: {word}{_RUNS}"
    )
