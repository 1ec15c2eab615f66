"""What the README shows a newcomer to copy works: its events decode, its settings load."""

import json
import re
from pathlib import Path

import msgpack
import pytest

from feature_store.codec import decode
from feature_store.schema import EventKind
from feature_store.settings import load_configuration

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EVENTS = [line for line in README.splitlines() if line.startswith('{"v"')]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _kind(fields: dict[str, object]) -> tuple[EventKind, str]:
    if "features" in fields:
        return EventKind.ITEM, "id"
    return (EventKind.CLICK if "item_id" in fields else EventKind.IMPRESSION), "user_id"


@pytest.mark.parametrize("line", EVENTS)
def test_events_decode_as_json_and_as_msgpack(line: str) -> None:
    fields = json.loads(line)
    kind, key_field = _kind(fields)
    key = fields[key_field].encode()
    event = decode(kind, key, line.encode(), 0)
    assert event == decode(kind, key, msgpack.packb(fields), 0)
    assert event.ts_ms == fields["ts_ms"]


def test_there_is_an_event_of_each_kind() -> None:
    kinds = {_kind(json.loads(line))[0] for line in EVENTS}
    assert kinds == {EventKind.ITEM, EventKind.IMPRESSION, EventKind.CLICK}


def test_the_settings_load(tmp_path: Path) -> None:
    (block,) = _blocks("toml")
    path = tmp_path / "shop.toml"
    path.write_text(block)
    assert load_configuration(path, [], {}).log.kind == "kafka"


def test_the_python_example_compiles() -> None:
    (block,) = _blocks("python")
    compile(block, "README.md", "exec")


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        named = re.findall(r"(?:`|^    )make ([a-z]+)", (ROOT / document).read_text(), re.MULTILINE)
        assert set(named) <= targets
