"""Keeps the habits that no linter knows: sizes, what documents must name, what pure modules must not touch.

Every test lists all offenders at once. The rules and their reasons: CONTRIBUTING.md and ARCHITECTURE.md.
"""

import ast
import itertools
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from prometheus_client import CollectorRegistry

from feature_store.configuration import Configuration
from feature_store.settings import load_configuration
from index_refresher.metrics import RefresherMetrics, ServerMetrics
from stream_trainer.metrics import TrainerMetrics

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("feature_store", "stream_trainer", "index_refresher", "simulators")
NOT_OURS = {".git", ".venv", "build", "__pycache__"}
MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 70
MAX_ARCHITECTURE_LINES = 150

PURE = {
    "feature_store": (
        "codec compiled configuration errors hashing id_index index item_changes numbering presets "
        "row_layout schema sequenced"
    ),
    "stream_trainer": (
        "candidates chunk chunker corpus event_log examples features file_frames gathered join "
        "join_entries merge negatives rehearsal running_mean waiting"
    ),
    "stream_trainer/models": (
        "alignment dat factory fm frequency loops losses mind relu_layers retrieval row_optimiser tower "
        "youtube_dnn"
    ),
    "index_refresher": "checks",
    "simulators": "amazon_fields compare_plan contenders metrics statistics timeline",
}
IMPURE = {
    "concurrent",
    "kafka",
    "os",
    "random",
    "rocksdict",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
}
GLOBAL_RANDOMNESS = re.compile(r"\bnp\.random\.(?!default_rng|Generator|Philox|PCG64|SeedSequence)\w+")
RUNS_CODE_ON_LOAD = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
# Written in pieces, so that this file does not offend against itself.
HOSTS = (
    "py" + "pi.org",
    "python" + "hosted.org",
    "download." + "pytorch",
    "repo.maven." + "apache",
    "repo1." + "maven",
)
INDEX_OPTIONS = ("index" + "-url", "find" + "-links", "trusted" + "-host")
MACHINE_PATHS = tuple(f"/{top}/" for top in ("home", "root", "work", "Users"))


def _files(*suffixes: str) -> list[Path]:
    """Every file of ours with one of the suffixes ("" = all), not what was built."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if (
                path.name in NOT_OURS
                or path.name.endswith(("_cache", ".egg-info"))
                or path.name == ".hypothesis"
            ):
                continue
            if path.is_dir():
                yield from walk(path)
            elif path.name.endswith(suffixes):
                yield path

    return list(walk(ROOT))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _modules() -> list[Path]:
    return [path for path in _files(".py") if path.relative_to(ROOT).parts[0] in PACKAGES]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it; `from a import b` counts as `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _top_level_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in _imports(path)}


def test_modules_are_short_and_say_what_they_own() -> None:
    long, silent = [], []
    for path in _files(".py"):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines >= MAX_MODULE_LINES:
            long.append(f"{_name(path)}: {num_lines} lines")
        if ast.get_docstring(_tree(path)) is None:
            silent.append(_name(path))
    assert long == []
    assert silent == []


def test_functions_are_short() -> None:
    long = []
    for path in _files(".py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if num_lines >= MAX_FUNCTION_LINES:
                    long.append(f"{_name(path)}: {node.name} has {num_lines} lines")
    assert long == []


def test_the_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_ARCHITECTURE_LINES
    named = set()
    for package, section in re.findall(r"^### `(\w+)/`.*\n((?:(?!#).*\n)+)", text, re.MULTILINE):
        named |= {f"{package}/{module}" for module in re.findall(r"`([\w/]+\.py)`", section)}
    modules = {_name(path) for path in _modules() if path.name != "__init__.py"}
    assert sorted(modules - named) == []
    assert sorted(named - modules) == []


def test_no_module_is_dead() -> None:
    imported = set().union(*map(_imports, _modules()))
    dead = []
    for path in _modules():
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem not in ("__init__", "__main__") and dotted not in imported:
            dead.append(_name(path))
    assert dead == []


@pytest.mark.parametrize("folder", PURE)
def test_pure_modules_touch_no_clock_socket_disk_thread_or_global_randomness(folder: str) -> None:
    offenders = []
    for module in PURE[folder].split():
        path = ROOT / folder / f"{module}.py"
        if not path.exists():
            offenders.append(f"{_name(path)}: does not exist")
            continue
        offenders += [f"{_name(path)}: imports {name}" for name in sorted(_top_level_imports(path) & IMPURE)]
        offenders += [f"{_name(path)}: {use[0]}" for use in GLOBAL_RANDOMNESS.finditer(path.read_text())]
    assert offenders == []


def test_nothing_that_is_read_can_run_code() -> None:
    offenders = []
    for path in _files(".py"):
        offenders += [
            f"{_name(path)}: imports {name}" for name in sorted(_top_level_imports(path) & RUNS_CODE_ON_LOAD)
        ]
        for node in ast.walk(_tree(path)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            ):
                offenders += [f"{_name(path)}: torch.{node.attr}"] if node.attr in ("load", "save") else []
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                offenders.append(f"{_name(path)}: allow_pickle")
    assert offenders == []


def test_every_setting_is_explained_with_its_default() -> None:
    path = ROOT / "deploy" / "dualstream.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    setting = re.compile(r"#?(\w+) = ")
    unexplained = [
        line for before, line in itertools.pairwise(lines) if setting.match(line) and before[:2] != "# "
    ]
    assert unexplained == []
    shown = tomllib.loads("\n".join(line[1:] if re.match(r"#\w+ = ", line) else line for line in lines))
    defaults = Configuration().model_dump(mode="json")
    assert {section: sorted(table) for section, table in shown.items()} == {
        section: sorted(table) for section, table in defaults.items()
    }
    assert shown == defaults


def test_the_deployed_settings_are_the_defaults_and_leave_presets_their_room() -> None:
    path = ROOT / "deploy" / "dualstream.toml"
    assert load_configuration(path, [], {}) == Configuration()
    paper = ["model.preset=paper"]
    assert load_configuration(path, paper, {}) == load_configuration(None, paper, {})


def test_every_metric_is_documented_and_no_other() -> None:
    registry = CollectorRegistry()
    TrainerMetrics(registry)
    RefresherMetrics(registry)
    ServerMetrics(registry)
    metrics = {
        family.name + ("_total" if family.type == "counter" else ""): family.documentation
        for family in registry.collect()
    }
    assert [name for name, text in metrics.items() if not text] == []
    table = (ROOT / "deploy" / "METRICS.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    assert sorted(set(metrics) - documented) == []
    assert sorted(documented - set(metrics)) == []


def test_documents_name_no_line_numbers() -> None:
    """A line number is wrong after the next edit: name the module or the function."""
    offenders = [
        f"{_name(path)}: {reference}"
        for path in _files(".md", ".py", ".toml")
        for reference in re.findall(r"\w+\.py:\d+", path.read_text(encoding="utf-8"))
    ]
    assert offenders == []


def test_links_between_documents_lead_somewhere() -> None:
    offenders = [
        f"{_name(path)}: {target}"
        for path in _files(".md")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert offenders == []


def test_nothing_depends_on_one_machine() -> None:
    offenders = []
    for path in _files(""):
        text = path.read_bytes().decode("utf-8", errors="replace")
        offenders += [f"{_name(path)}: {bad}" for bad in (*HOSTS, *INDEX_OPTIONS) if bad in text]
        offenders += [
            f"{_name(path)}: {bad}" for bad in MACHINE_PATHS if re.search(rf"(?<![\w.]){bad}", text)
        ]
    assert offenders == []


def test_every_version_is_pinned() -> None:
    """What we depend on, and by `metadata` what that depends on."""
    pinned = {_normal(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().split()}
    wanted, seen = {("dualstream", "dev")}, set[tuple[str, str]]()
    while wanted:
        seen |= wanted
        found = {dependency for one in wanted for dependency in _dependencies(*one)}
        wanted = found - seen
    assert sorted({name for name, _ in seen} - pinned - {"dualstream"}) == []


def _dependencies(name: str, extra: str) -> Iterator[tuple[str, str]]:
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for of_it in requirement.extras or {""}:
                yield _normal(requirement.name), of_it


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
