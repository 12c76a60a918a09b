"""Code that tasks use, with a module for each external system."""
