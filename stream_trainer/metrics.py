"""The trainer's Prometheus metrics: their names, help and labels. Documented in deploy/METRICS.md."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class TrainerMetrics:
    """One set of instruments in one registry: made at start, never at import."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"dualstream_trainer_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"dualstream_trainer_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"dualstream_trainer_{name}", text, registry=registry, buckets=_SECONDS)

        self.events = counter("events_total", "Events received", ("topic",))
        self.dead_letters = counter(
            "dead_letters_total", "Messages sent to the dead-letter topic", ("reason",)
        )
        self.join = gauge("join_events", "Outcomes of the join since the start of the process", ("outcome",))
        self.buffered = gauge("buffered", "Events that wait", ("buffer",))
        self.positives = counter("positives_total", "Positives learned for the first time")
        self.rehearsed = counter("rehearsed_total", "Examples learned again")
        self.loss = gauge("loss", "Loss of the last step", ("part",))
        self.hit_rate = gauge(
            "prequential_hit_rate", "Share of positives ranked in the first 50 before being learned"
        )
        self.mrr = gauge("prequential_mrr", "Mean reciprocal rank of positives before being learned")
        for unknown in (self.hit_rate, self.mrr):
            unknown.set(math.nan)
        self.batch_seconds = seconds("batch_seconds", "Time of one learning step")
        self.commit_seconds = seconds(
            "commit_seconds",
            "Time that a commit, a piece of one, or a read that waits for one holds up the learning at once",
        )
        self.commits = counter("commits_total", "Commits")
        self.committed_rows = counter("committed_rows_total", "Rows written by commits")
        self.lag_records = gauge("lag_records", "Records in the log that are not yet received")
        self.lag_seconds = gauge("lag_seconds", "Wall clock less event time of the last event received")
        self.rows = gauge("rows_in_memory", "Rows in memory", ("table",))
        self.rows_evicted = gauge("rows_evicted", "Rows evicted since the start of the process", ("table",))
        self.rows_read = gauge(
            "rows_read", "Rows read from the store since the start of the process", ("table",)
        )
        self.corpus_items = gauge("corpus_items", "Items that may be recommended")
