"""The probe of the API: asks the API on this machine, prints one line, and exits with 0 or 1.

    python -m celery_service.api.probe live|ready

API_HOST and API_PORT say where it is. This module imports neither Celery nor FastAPI.
"""

import json
import os
import sys
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException

#: Where to ask if the API listens on all addresses.
ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
#: Seconds to wait. While the broker is away, the answer takes two seconds.
TIMEOUT = 4


def main(arguments: Sequence[str]) -> int:
    """Print one line and return the exit status."""
    if len(arguments) != 1 or arguments[0] not in ("live", "ready"):
        print("usage: python -m celery_service.api.probe live|ready")
        return 1
    host = os.environ.get("API_HOST") or "127.0.0.1"
    port = int(os.environ.get("API_PORT") or 8000)
    connection = HTTPConnection(ALL.get(host, host), port, timeout=TIMEOUT)
    try:
        # Without a key, the API serves requests only that ask for this machine.
        connection.request("GET", f"/health/{arguments[0]}", headers={"Host": "localhost"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, HTTPException) as error:
        print(f"not {arguments[0]}: {error}")
        return 1
    finally:
        connection.close()
    healthy = answer.status == 200
    print(arguments[0] if healthy else f"not {arguments[0]}: {json.loads(text)}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
