"""The HTTP API. `app.py` has the application, `routes.py` what it offers."""
