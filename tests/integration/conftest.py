"""Fixtures of the whole-process tests: a shop on either log."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_shop import Shop

TOPICS = ("items", "users", "impressions", "clicks", "dead_letters")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A shop on the embedded log."""
    made = Shop(tmp_path, [f"log.path={tmp_path / 'log'}"])
    yield made
    made.close()


@pytest.fixture
def kafka_shop(tmp_path: Path, kafka_bootstrap: str) -> Iterator[Shop]:
    """A shop on the broker, with topics of its own."""
    prefix = uuid.uuid4().hex[:8]
    names = [f"topics.{name}=process-{prefix}-{name.replace('_', '-')}" for name in TOPICS]
    made = Shop(tmp_path, ["log.kind=kafka", f"log.bootstrap_servers={kafka_bootstrap}", *names])
    yield made
    made.close()
