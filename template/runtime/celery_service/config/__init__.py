"""The configuration of a process. settings.py reads the settings of a service, the other modules
those of Celery.
"""
