"""The HTTP API of a service, on FastAPI. `app.create_app` is the door; docs/dev/api.md has the rest.

This module imports nothing, because `celery` imports `command.py` for each command.
"""
