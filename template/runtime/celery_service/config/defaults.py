"""Our defaults for the settings of Celery, for production, each with its reason.

For the settings, see https://docs.celeryq.dev/en/stable/userguide/configuration.html
All times are in seconds. `brokers/` has the defaults that depend on the broker.
"""

# Without timeouts, a Redis that accepts connections and never answers would block a web request or
# a worker for ever.
REDIS_SOCKET: dict[str, object] = {
    "socket_connect_timeout": 2.0,
    "socket_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

DEFAULTS: dict[str, object] = {
    # --- messages ---
    # JSON only: with pickle, anybody who can write to the broker could run code in workers.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    # Schedules, ETAs and logs use the same time zone on all machines.
    "timezone": "UTC",
    "enable_utc": True,
    # --- queues: see brokers/queues.py ---
    "task_default_queue": "default",
    # --- no task is lost ---
    # A worker acknowledges a message when its task has ended, and requeues it if the process dies.
    # A task may therefore run twice, so tasks must be idempotent. With early acknowledgement, a
    # kill would lose the running tasks. A task that kills its process each time becomes a dead
    # letter: see dead_letters/poison.py.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # Prefetch one message for each process. More of them would wait behind a long task while other
    # workers are idle.
    "worker_prefetch_multiplier": 1,
    # Set the state STARTED, so that you can tell running tasks from waiting ones.
    "task_track_started": True,
    # --- limits ---
    # Without a limit, a task that hangs would occupy its process for ever. The soft limit is 90 %
    # of this limit: see merge.py.
    "task_time_limit": 600.0,
    # A worker holds tasks with a countdown in memory until they are due, beyond its prefetch.
    "worker_eta_task_limit": 1000,
    # Replace a process after so many tasks, because tasks may leak memory.
    "worker_max_tasks_per_child": 1000,
    # --- results ---
    # If Redis is unreachable when a task ends, wait, and then store the result. By default, Celery
    # would mark the task as failed. data/results.py decides which errors are temporary. Clients
    # don't wait: see brokers/redis/backend.py.
    "result_backend_always_retry": True,
    # Retry at least every 2 seconds. The default is 10 seconds.
    "result_backend_max_sleep_between_retries_ms": 2000,
    # After a day, nobody waits for a result any more.
    "result_expires": 86400.0,
    "result_backend_transport_options": {
        # Sending a chord also writes to the result backend. The default is 20 retries.
        "retry_policy": {
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
    },
    "redis_socket_connect_timeout": REDIS_SOCKET["socket_connect_timeout"],
    "redis_socket_timeout": REDIS_SOCKET["socket_timeout"],
    "redis_socket_keepalive": True,
    # --- the broker is unreachable ---
    # A worker waits for its broker without a limit, when it starts and later.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 2.0,
    # A publisher gets an error within seconds. By default, it waits for a connection for ever.
    "broker_pool_acquire_timeout": 3.0,
    # A web process may have 40 threads. With the default of 10 connections, they would wait for
    # each other, and some of them without the limit above:
    # https://github.com/celery/kombu/blob/v5.7.0/kombu/pools.py
    "broker_pool_limit": 50,
    "task_publish_retry": True,
    "task_publish_retry_policy": {
        "max_retries": 1,
        "interval_start": 0.5,
        "interval_step": 0.0,
        "interval_max": 0.5,
    },
    # --- stopping ---
    # The grace period: a worker exits within so many seconds after SIGTERM and gives unfinished
    # messages back to the broker. Deployments must wait longer before they send SIGKILL. See
    # lifecycle/shutdown.py.
    "worker_soft_shutdown_timeout": 30.0,
    # --- logging: see observability/logging.py ---
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}
