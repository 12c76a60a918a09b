"""The HTTP server of a worker or of beat, in threads of its main process."""

import os

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics import disable_created_metrics

from celery_service.monitoring.prometheus.settings import Settings

logger = structlog.get_logger(__name__)

# From Python 3.14 on, two processes could listen on the same port, and each would get some of the
# requests.
ThreadingWSGIServer.allow_reuse_port = False


def new_registry() -> CollectorRegistry:
    """Return a registry with the metrics of this process: its memory, CPU time and open files."""
    # A time of creation for each series would double their number.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(support_collectors_without_names=True)
    ProcessCollector(registry=registry)
    return registry


def serve(registry: CollectorRegistry, settings: Settings) -> None:
    """Start to serve metrics. If that fails, log a warning: tasks are more important."""
    host, port = settings.host, settings.port
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        logger.warning(
            "metrics_not_served",
            host=host,
            port=port,
            error=str(error),
            hint="METRICS_PORT names another port, and METRICS_HOST another address",
        )
        return
    # The processes that run tasks must neither answer nor keep the port.
    os.register_at_fork(after_in_child=server.socket.close)
    name = f"[{host}]" if ":" in host else host
    logger.info("metrics_served", url=f"http://{name}:{server.server_port}/metrics")
