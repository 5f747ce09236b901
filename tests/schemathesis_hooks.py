"""What schemathesis has to know to test the daemon: how to make lines of JSON, and which rules no schema can express.

By hand, for as long as you like, on a daemon with ``MAX_WAIT=0.02 QUEUE_TIMEOUT=0.02``:

    SCHEMATHESIS_HOOKS=tests.schemathesis_hooks st run URL/openapi.json --exclude-checks positive_data_acceptance \\
        --exclude-path /api/events -n 500
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis
from hypothesis import strategies as st

# Sentences of refusals whose rule is about several values together, about bytes instead of characters, or about what there is.
BEYOND_SCHEMAS = re.compile(
    "|".join(
        (
            r"The options 'delay' and 'at' cannot be combined",
            r"The option 'ttl' must be longer than 'delay'",
            r"The option 'reason' is only for state=dead",
            r"The option 'to' must name a different queue",
            r"The option 'cursor' must be the cursor of the previous page",
            r"the task would expire before it is due",
            r"The option 'tracestate' needs a 'traceparent'",
            r"With 'stats', a page has at most",
            r"At most 1000 leases can be settled at once",
            r"must be text of \d+ to \d+ bytes",
            r"must have 1 to 255 bytes",
            r"This Idempotency-Key was already used",
            r"is not a task of an export",
            r"The field 'timezone' must be a name",
            r"The field 'cron' (?:must be an expression|never matches)",
        )
    )
)
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_lines = st.lists(_values, min_size=1, max_size=5)
schemathesis.openapi.media_type(
    "application/x-ndjson", _lines.map(lambda lines: "\n".join(map(json.dumps, lines)).encode())
)


@schemathesis.check
def valid_requests_are_accepted(ctx: Any, response: Any, case: Any) -> None:
    """A request that the document allows is not refused as malformed, except for a rule that no schema can express."""
    meta = case.meta
    if (
        meta is None
        or not meta.generation.mode.is_positive
        or response.status_code not in (400, 413, 415, 422)
    ):
        return
    sentence = response.json()["error"]
    # A pop without a lease ignores the key, so its schema allows any.
    about_key = case.path.startswith("/api/popTask/") and "Idempotency-Key must be" in sentence
    # The options of a schedule may be numbers as text.
    as_text = case.path.startswith("/api/schedules/") and re.search(
        r"must be a .* from .* to .*, not '", sentence
    )
    assert about_key or as_text or BEYOND_SCHEMAS.search(sentence), (
        f"the document allows this request: {sentence}"
    )


@schemathesis.hook
def before_load_schema(ctx: Any, raw_schema: dict[str, Any]) -> None:
    """Leave out the header that every operation has, and that takes anything: a tenth of all requests would vary it alone."""
    for item in raw_schema["paths"].values():
        for operation in item.values():
            kept = [
                one for one in operation["parameters"] if not one.get("$ref", "").endswith("X-Request-Id")
            ]
            operation["parameters"] = kept
