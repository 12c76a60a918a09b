"""What schemathesis can't know about the HTTP API. The variable SCHEMATHESIS_HOOKS names this file."""

from typing import Any
from uuid import uuid4

import schemathesis

KEY = "idempotency-key"


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001  # their names matter
    """Give each valid request a key of its own: one that was used with another body is refused, as it must be."""
    for name, value in dict(case.headers or {}).items():
        if name.lower() == KEY and isinstance(value, str) and 0 < len(value) <= 255:
            case.headers[name] = str(uuid4())
