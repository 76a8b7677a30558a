# SPDX-License-Identifier: Apache-2.0
"""What Prometheus may ask: numbers of jobs, workers, refusals and seconds, no names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus's text format."""
_SECONDS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        prefix = "progressive_cascade"
        self.accepted = Counter(f"{prefix}_jobs_accepted", "Jobs that were accepted.", registry=self.registry)
        self.finished = Counter(f"{prefix}_jobs_finished", "Jobs by how they ended.", ["state"], registry=self.registry)
        self.outcomes = Counter(f"{prefix}_attempts", "Runs of a job by outcome.", ["kind"], registry=self.registry)
        self.requests = Counter(f"{prefix}_requests", "Requests by status code.", ["code"], registry=self.registry)
        self.restarts = Counter(f"{prefix}_worker_restarts", "Workers that were started again.", registry=self.registry)
        self.seconds = Histogram(
            f"{prefix}_job_seconds", "Seconds from begin to end.", buckets=_SECONDS, registry=self.registry
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is asked for."""
        Gauge(f"progressive_cascade_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
