"""`celery doctor`: what would hurt at three in the morning, each line with its fix.

finding.py has the lines, examine.py runs the checks, command.py prints what they find. Each of the
other modules has the checks of one topic: functions that take the app and yield findings. A worker
imports none of them.
"""
