"""How fast the product is, always as a ratio: both sides are measured in one run, in turns.

Run by hand: `make bench`, or `python -m benchmarks NAME …`. Never part of the tests. What each benchmark compares and
how is said in `tasks.py` (tasks on real workers), `workers.py` (their start and memory), `leases.py` (what they hold on
Redis), `api.py` (the HTTP API under load) and `template.py` (Copier).
"""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

# As pytest does: the support package renders and installs projects, and starts workers and servers.
sys.path.insert(0, str(REPOSITORY / "tests"))
