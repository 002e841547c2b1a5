"""Prometheus metrics under vLLM's names, so that its dashboards work here.

What vLLM has no name for begins with `maestrale_`. docs/reference/metrics.md lists them all.
"""

from maestrale.metrics.answers import ModelMetrics
from maestrale.metrics.registry import Metrics

__all__ = ["Metrics", "ModelMetrics"]
