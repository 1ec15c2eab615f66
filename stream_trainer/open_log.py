"""Opens the event log that the settings name. Owns the choice, nothing else."""

from feature_store.configuration import LogSettings
from stream_trainer.event_log import EventLog
from stream_trainer.file_log import FileEventLog
from stream_trainer.kafka_log import KafkaEventLog


def open_log(settings: LogSettings) -> EventLog:
    """Return the embedded log or Kafka's; neither touches a disk or a socket yet.

    Raises:
        SettingsError: `log.client` has a key that no Kafka client knows.
    """
    if settings.kind == "kafka":
        return KafkaEventLog(settings)
    return FileEventLog(settings.path)
