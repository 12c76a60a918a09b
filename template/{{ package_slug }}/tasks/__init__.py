"""The tasks of this service. Workers import every module in this package."""
