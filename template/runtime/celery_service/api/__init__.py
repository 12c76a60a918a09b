"""The HTTP API of a service, on FastAPI. The door is `app.create_app`; see docs/dev/api.md.

This module imports nothing, because `celery` imports `command.py` for each command.
"""
