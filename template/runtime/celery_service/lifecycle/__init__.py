"""How processes start, live and stop. health.py is also a program, so this imports nothing."""
