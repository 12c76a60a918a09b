"""What this service does. The worker imports every module in here: add one, and its tasks exist."""
