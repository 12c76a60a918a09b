"""How processes start, run and stop. health.py is also a program, so this imports nothing."""
