"""From records in merge order to chunks of facts: moves the watermark, joins, and notes how far the log is.

Pure; time is the stream's. Owns the order of what one record does: first what time closes, because it
happened before the record, then the record's own effect. Never polls, decodes or learns.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from feature_store.configuration import JoinSettings
from feature_store.schema import Click, Deleted, EventKind, Impression, ItemFeatures, UserFeatures
from stream_trainer.chunk import Changed, Chunk, Joined, Marks, Place, Position, as_facts
from stream_trainer.event_log import TopicPartition
from stream_trainer.ingest import Merged
from stream_trainer.join import NEVER_MS, Joiner

_PARTITION_OF: Callable[[Merged], TopicPartition] = itemgetter(0)
_NONE: Mapping[str, int] = {}


class Chunker:
    """Gathers what records come to, until it is taken as a chunk."""

    def __init__(self, settings: JoinSettings, position: Position) -> None:
        self._joiner = Joiner.load(settings, position.join)
        self._lateness_ms = round(settings.allowed_lateness_seconds * 1000)
        self._watermark_ms = position.marks.watermark_ms
        self._latest_click_ms = position.marks.latest_click_ms
        self._latest_event_ms = position.marks.latest_event_ms
        self._happened: list[Joined | Changed] = []
        self._places: dict[TopicPartition, tuple[int, int]] = {}
        self._num_events: Counter[str] = Counter()

    def begin_at(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note where partitions are begun of which nothing is known: while they are empty, too, or what comes
        and is deleted before the next start would not be missed then.
        """
        self._places |= {partition: (offset, 0) for partition, offset in offsets.items()}

    def add(self, records: Sequence[Merged]) -> None:
        """Take records in merge order; one that could not be decoded has no event, but its place counts."""
        joiner, happened, lateness_ms = self._joiner, self._happened, self._lateness_ms
        reached_ms, latest_click_ms = self._watermark_ms + lateness_ms, self._latest_click_ms
        for partition, ts_ms, offset, event in records:  # a hundred thousand a second: each call tells
            if ts_ms > reached_ms:
                reached_ms = ts_ms
                if ts_ms - lateness_ms > joiner.due_ms:
                    happened += joiner.advance(ts_ms - lateness_ms)
            if type(event) is Click:
                if event.ts_ms > latest_click_ms:  # noqa: PLR1730  `max` would be such a call
                    latest_click_ms = event.ts_ms
                happened += joiner.click(event, partition.partition, offset)
            elif type(event) is Impression:
                happened += joiner.impression(event)
            elif event is not None:
                happened.append(_changed(event))
        self._watermark_ms, self._latest_click_ms = reached_ms - lateness_ms, latest_click_ms
        self._note_places(records)

    def close_windows(self) -> None:
        """Act as if time had passed every window: the end of a bounded replay."""
        self._happened += self._joiner.advance(NEVER_MS)

    def take(
        self, lag_records: int = 0, dead_letters: Mapping[str, int] = _NONE, at_end: bool = False
    ) -> Chunk:
        """Return what was gathered since the last call."""
        happened, self._happened = self._happened, []
        places, self._places = self._places, {}
        num_events, self._num_events = self._num_events, Counter()
        return Chunk(
            as_facts(happened),
            [Place(*partition, *place) for partition, place in places.items()],
            Marks(self._watermark_ms, self._latest_click_ms, self._latest_event_ms),
            self._joiner.take_changes(),
            vars(self._joiner.counts).copy(),
            self._joiner.num_impressions,
            self._joiner.num_clicks,
            num_events,
            dict(dead_letters),
            lag_records,
            at_end,
        )

    def _note_places(self, records: Sequence[Merged]) -> None:
        last_of = dict(zip(map(_PARTITION_OF, records), records, strict=True))
        self._places |= {partition: (offset + 1, ts_ms) for partition, ts_ms, offset, _ in last_of.values()}
        self._latest_event_ms = max(self._latest_event_ms, *(ts_ms for _, ts_ms in self._places.values()), 0)
        for partition, count in Counter(map(_PARTITION_OF, records)).items():
            self._num_events[partition.topic] += count


def _changed(event: ItemFeatures | UserFeatures | Deleted) -> Changed:
    if isinstance(event, Deleted):
        return Changed(event.kind == EventKind.ITEM, event.id, None)
    return Changed(isinstance(event, ItemFeatures), event.id, event.features)
