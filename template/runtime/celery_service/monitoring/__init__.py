"""What a service can be monitored with. Each module needs the extra of its name."""
