"""What tasks use: one module for each system outside."""
