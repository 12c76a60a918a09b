"""Our defaults: what a service needs in production, each with its reason.

The settings are Celery's: https://docs.celeryq.dev/en/stable/userguide/configuration.html
All times are seconds. What depends on the broker stands in `brokers/`.
"""

# A Redis that accepts connections and never answers would hang a web request or a worker for ever.
REDIS_SOCKET: dict[str, object] = {
    "socket_connect_timeout": 2.0,
    "socket_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

DEFAULTS: dict[str, object] = {
    # --- messages ---
    # JSON only: whoever can write to the broker could run code through pickle.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    # One clock for schedules, ETAs and logs, wherever the machines stand.
    "timezone": "UTC",
    "enable_utc": True,
    # --- queues: see brokers/queues.py ---
    "task_default_queue": "default",
    # --- no task is lost ---
    # Acknowledge when the task has ended, and give it back when its process dies: it may then run
    # twice, so tasks must be idempotent. With early acknowledgement every kill loses what ran.
    # A task that kills its process each time is given up: see dead_letters/poison.py.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # Take one message at a time: prefetched ones wait behind a long task while other workers idle.
    "worker_prefetch_multiplier": 1,
    # Tell "running" from "waiting" in the result.
    "task_track_started": True,
    # --- limits ---
    # A task that hangs would hold its process for ever. The soft limit is nine tenths of this one.
    "task_time_limit": 600.0,
    # A worker holds tasks with a countdown in memory until they are due, beyond its prefetch.
    "worker_eta_task_limit": 1000,
    # Give memory that tasks leak back to the machine.
    "worker_max_tasks_per_child": 1000,
    # --- results ---
    # Redis is away when a task ends: wait and store the result. By default, finished work is then
    # called a failure. Which errors pass, data/results.py tells. Clients don't wait: see
    # brokers/redis/backend.py.
    "result_backend_always_retry": True,
    # And look every other second whether it is back, not every ten.
    "result_backend_max_sleep_between_retries_ms": 2000,
    # Results are for those who wait for them; a day later nobody does.
    "result_expires": 86400.0,
    "result_backend_transport_options": {
        # Whoever sends a chord writes to the result store too. By default that takes 20 tries.
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
    # --- the broker is away ---
    # A worker waits for its broker, at start and later, for as long as it takes.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": 2.0,
    # A publisher gets its error within seconds. By default it waits for a connection for ever.
    "broker_pool_acquire_timeout": 3.0,
    # A web process has 40 threads. With 10 connections, by default, they wait for each other too,
    # and some of them without that limit: https://github.com/celery/kombu/blob/v5.7.0/kombu/pools.py
    "broker_pool_limit": 50,
    "task_publish_retry": True,
    "task_publish_retry_policy": {
        "max_retries": 1,
        "interval_start": 0.5,
        "interval_step": 0.0,
        "interval_max": 0.5,
    },
    # --- stopping ---
    # The grace period: so many seconds after SIGTERM the worker has gone, and what it couldn't
    # finish is back with the broker. Deployments kill no sooner. See lifecycle/shutdown.py.
    "worker_soft_shutdown_timeout": 30.0,
    # --- logging: see observability/logging.py ---
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}
