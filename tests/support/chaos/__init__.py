"""The fault suite: real workers run real tasks while processes and servers are killed, frozen and restarted.

`bench.py` holds the servers, the workers and the publisher; `faults.py` what is done to them; `cells.py` runs one row
of the table and counts; `__main__.py` runs them all and writes docs/reliability.md.
"""
