"""The deployed files name commands, exit codes and ports that exist."""

import configparser
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from feature_store import errors
from feature_store.configuration import Configuration

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMAND = re.compile(r"/([a-z-]+) (run|serve|once) --config ")


def test_there_is_a_unit_for_each_daemon() -> None:
    started = {" ".join(COMMAND.findall(unit.read_text())[0]) for unit in UNITS}
    assert started == {"stream-trainer run", "index-refresher run", "index-refresher serve"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_well_formed(unit: Path) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    service = parser["Service"]
    command = COMMAND.search(service["ExecStart"])
    assert command is not None
    assert command[1] in SCRIPTS
    assert service["Restart"] == "on-failure"
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    codes = {each.exit_code for each in classes if issubclass(each, errors.DualstreamError)}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} <= codes
    assert service["Environment"] == f"NUMBA_CACHE_DIR=/var/cache/{service['CacheDirectory']}"
    former = {path.name for path in UNITS} | {"network-online.target"}
    assert set(parser["Unit"]["After"].split()) <= former


def test_the_crontab_runs_one_refresh() -> None:
    text = (ROOT / "deploy" / "crontab").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert COMMAND.findall(lines[0]) == [("index-refresher", "once")]


def test_prometheus_scrapes_the_default_ports() -> None:
    config = Configuration()
    ports = [config.metrics.trainer_port, config.metrics.refresher_port, config.serve.port]
    targets = re.findall(r'targets: \["(.*)"\]', (ROOT / "deploy" / "prometheus.yml").read_text())
    assert targets == [f"127.0.0.1:{port}" for port in ports]
