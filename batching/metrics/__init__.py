"""Metrics for Prometheus, from SQL alone: `/metrics` of the dashboard, or of a manager (BATCHING_METRICS_ADDRESS)."""

from batching.metrics.exposition import CONTENT_TYPE, exposition

__all__ = ["CONTENT_TYPE", "exposition"]
