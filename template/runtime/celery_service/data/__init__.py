"""The database and the cache of tasks. Each event loop opens its own connections."""
