"""What the service counted, for Prometheus to collect at `/metrics`.

prometheus-client is imported for the first who asks: most services start more often than
they are watched.
"""

from .endpoint import MetricsEndpoint as MetricsEndpoint
from .sources import Sources as Sources
