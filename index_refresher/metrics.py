"""The metrics of refresher and server: their names, help and labels. Documented in deploy/METRICS.md.

Owns the instruments, made at start and never at import. Never measures by itself, but for ages: a gauge set
at each event would stand still when events stop coming, so those are worked out when they are scraped.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_REFRESH_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_ANSWER_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FRESHNESS_SECONDS = (0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 86_400)


class RefresherMetrics:
    """The instruments of `index-refresher run` and `once`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "dualstream_refresher_"
        self.refreshes = Counter(
            f"{prefix}refreshes_total",
            "Refreshes by outcome: published, unchanged (no new commit), empty (no commit yet), failed",
            ("outcome",),
            registry=registry,
        )
        self.checks_failed = Gauge(
            f"{prefix}checks_failed",
            "1 while the last refresh was refused by its checks and the old generation stays: alert on it",
            registry=registry,
        )
        self.refresh_seconds = Histogram(
            f"{prefix}refresh_seconds",
            "Time to make and publish a generation",
            registry=registry,
            buckets=_REFRESH_SECONDS,
        )
        self.items_embedded = Counter(f"{prefix}items_embedded_total", "Items embedded", registry=registry)
        self.generation = Gauge(
            f"{prefix}generation", "Number of the newest generation, 0 before the first", registry=registry
        )
        self.recall = Gauge(
            f"{prefix}recall", "Recall of the newest generation against exact search", registry=registry
        )
        self._age = _age_gauge(
            f"{prefix}generation_age_seconds", "Time since the newest generation was made", registry
        )
        self._staleness = _age_gauge(
            f"{prefix}staleness_seconds",
            "Wall clock less the newest generation's event-time watermark",
            registry,
        )

    def show_generation(self, number: int, created_ms: int, watermark_ms: int, recall: float) -> None:
        """Let number, age, staleness and recall be those of this generation."""
        self.generation.set(number)
        self.recall.set(recall)
        self._age.set_function(lambda: time.time() - created_ms / 1000)
        self._staleness.set_function(lambda: time.time() - watermark_ms / 1000)


class ServerMetrics:
    """The instruments of `index-refresher serve`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "dualstream_server_"
        self.requests = Counter(
            f"{prefix}requests_total",
            "Requests by route (or unmatched) and HTTP status",
            ("route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            f"{prefix}request_seconds",
            "Time from a request's head to its answer",
            ("route",),
            registry=registry,
            buckets=_ANSWER_SECONDS,
        )
        self.answers = Counter(
            f"{prefix}answers_total",
            "Users answered, by source: model or popularity",
            ("source",),
            registry=registry,
        )
        self.reload_failures = Counter(
            f"{prefix}reload_failures_total",
            "Looks for a new generation or commit that failed; what was served before stays",
            registry=registry,
        )
        self.generation = Gauge(
            f"{prefix}generation", "Number of the generation in use, 0 before the first", registry=registry
        )
        self.swaps = Counter(f"{prefix}swaps_total", "Generations taken into use", registry=registry)
        self.delta_items = Gauge(
            f"{prefix}delta_items",
            "Since the generation was made: items of it that were deleted, or fresh ones beside it",
            ("state",),
            registry=registry,
        )
        self.commit = Gauge(
            f"{prefix}commit", "The trainer's commit whose user rows are read", registry=registry
        )
        self.click_to_served_seconds = Histogram(
            f"{prefix}click_to_served_seconds",
            "Event time of the newest event of a commit to the first answer that knows it, once a commit",
            registry=registry,
            buckets=_FRESHNESS_SECONDS,
        )
        self._age = _age_gauge(
            f"{prefix}generation_age_seconds", "Time since the generation in use was made", registry
        )
        self._staleness = _age_gauge(
            f"{prefix}staleness_seconds",
            "Wall clock less the event-time watermark of the commit in use",
            registry,
        )

    def show_generation(self, number: int, created_ms: int) -> None:
        """Let number and age be those of this generation, and count the swap."""
        self.swaps.inc()
        self.generation.set(number)
        self._age.set_function(lambda: time.time() - created_ms / 1000)

    def show_delta(self, num_deleted: int, num_fresh: int) -> None:
        """Let so many items be told of that changed since the generation was made."""
        self.delta_items.labels("deleted").set(num_deleted)
        self.delta_items.labels("fresh").set(num_fresh)

    def show_commit(self, number: int, watermark_ms: int) -> None:
        """Let commit and staleness be those of this commit."""
        self.commit.set(number)
        self._staleness.set_function(lambda: time.time() - watermark_ms / 1000)


def _age_gauge(name: str, text: str, registry: CollectorRegistry) -> Gauge:
    gauge = Gauge(name, f"{text}; NaN before there is one", registry=registry)
    gauge.set(float("nan"))
    return gauge
