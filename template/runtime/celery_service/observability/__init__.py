"""What processes tell about themselves."""
