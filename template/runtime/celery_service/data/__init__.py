"""What tasks keep data in: a database and a cache, each opened once for an event loop."""
