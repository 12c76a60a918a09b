"""The configuration of a process: defaults.py, environment.py and merge.py for Celery, settings.py
for everything else.
"""
