"""Makes kafka-python's clients from our settings, and turns their errors into ours.

Owns which client settings are ours to decide and which are the operator's. Knows nothing of records.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import KafkaConfigurationError, KafkaError  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

from feature_store.configuration import LogSettings
from feature_store.errors import LogError, SettingsError

# The promises of the event log rest on these; `log.client` may not touch them.
_DECIDED = {
    "acks",
    "auto_offset_reset",
    "bootstrap_servers",
    "check_crcs",
    "enable_auto_commit",
    "enable_idempotence",
    "group_id",
    "kafka_client",
    "key_deserializer",
    "key_serializer",
    "transactional_id",
    "value_deserializer",
    "value_serializer",
}


def check_client_settings(settings: LogSettings) -> None:
    """Refuse what no client knows and what is not the operator's to change, before anything connects.

    Raises:
        SettingsError: names the key.
    """
    known = {*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG, *KafkaAdminClient.DEFAULT_CONFIG}
    for key in settings.client:
        if key in _DECIDED:
            raise SettingsError(f"log.client.{key}: not to be set here: the event log's promises rest on it")
        if key not in known:
            raise SettingsError(f"log.client.{key}: kafka-python has no such setting")


def connect(client: Any, settings: LogSettings, **ours: Any) -> Any:
    """Return a connected client of the class `client`. The operator's settings go before ours.

    Each client gets those of `log.client` that it knows: a consumer has no batch size.

    Raises:
        SettingsError: a setting has an impossible value.
        LogError: no broker answers.
    """
    theirs = {key: value for key, value in settings.client.items() if key in client.DEFAULT_CONFIG}
    with ExitStack() as abandoned:

        def make_connections(**config: Any) -> Any:
            connections = KafkaNetClient(**config)
            abandoned.callback(connections.close)
            return connections

        options = {
            "bootstrap_servers": settings.bootstrap_servers.split(","),
            # Back within two seconds of the broker; the default of 30 s costs up to 40.
            "reconnect_backoff_max_ms": 1000,
            **ours,
            **theirs,
            # A client that fails to start leaves its thread and sockets behind: close them for it.
            "kafka_client": make_connections,
        }
        try:
            connected = client(**options)
        except (KafkaConfigurationError, ValueError, TypeError, AssertionError, OSError) as error:
            raise SettingsError(f"log.client: {error}") from error
        except KafkaError as error:
            raise LogError(f"no Kafka broker at {settings.bootstrap_servers}: {error}") from error
        abandoned.pop_all()
        return connected


@contextmanager
def kafka_errors(doing: str) -> Iterator[None]:
    """Turn kafka-python's errors into `LogError` that says what was being done."""
    try:
        yield
    except KafkaError as error:
        raise LogError(f"Kafka: {doing}: {error}") from error
