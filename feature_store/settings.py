"""Reads the settings: preset < TOML file < environment < command line, merged by pydantic-settings.

Owns where a value may come from, and the errors that say so. Names, bounds and defaults stand in
`configuration.py`. Never guesses: a key that does not exist, a value of the wrong type and a variable
`DUALSTREAM_…` that names nothing are refused, each with its source.
"""

import argparse
import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.presets import PRESETS, ROWS_RATES

ENVIRONMENT_PREFIX = "DUALSTREAM_"

Tree = dict[str, Any]
Sources = dict[str, str]  # "section.key" → the file, variable or flag that set it


class _Given(NamedTuple):
    """What flags or variables say, and the (section, key) that they give whole, not in parts."""

    tree: Tree
    whole: set[tuple[str, str]]


class _Merged(BaseSettings, extra="allow"):
    """The layers merged, first wins. Not checked here: only later can an error name the source of a value."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Merge only what was passed in: pydantic-settings' own readers skip unknown variables in silence."""
        assert isinstance(init_settings, InitSettingsSource)
        return tuple(InitSettingsSource(settings_cls, layer) for layer in init_settings.init_kwargs["layers"])


def load_configuration(
    config: Path | None, overrides: Sequence[str], environ: Mapping[str, str]
) -> Configuration:
    """Return the configuration; `overrides` are `section.key=value`, variables `DUALSTREAM_SECTION__KEY`.

    The preset that `model.preset` names lies under all explicit keys, and what is returned holds the
    outcome: what is stored is what was really used, also after a preset's values change.

    Raises:
        SettingsError: names each bad key, the file, variable or flag that set it, and what is allowed.
    """
    sources: Sources = {}
    flags, variables = _read_overrides(overrides, sources), _read_environment(environ, sources)
    file = _without(_without(_read_file(config, sources), variables), flags)
    explicit = _merge([flags.tree, _without(variables.tree, flags), file])
    merged = _merge([explicit, _preset_layer(explicit, sources)])
    merged = _merge([merged, _rate_layer(merged)])
    # By way of JSON, strictly: "64" is no number and true no 1, while a path may be text and 1 a float.
    text = json.dumps(merged, default=str)
    try:
        return Configuration.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = [_explain(detail, sources) for detail in error.errors(include_url=False)]
        raise SettingsError("; ".join(problems)) from None


def command_line(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a program's parser: with `--version`, and an epilog as it stands."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{prog} {version('dualstream')}")
    return parser


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser `--config FILE` and `--set SECTION.KEY=VALUE`."""
    group = parser.add_argument_group(
        "settings",
        "TOML file < environment (DUALSTREAM_SECTION__KEY) < --set; deploy/dualstream.toml explains each key",
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="TOML file; without it, the defaults")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="one setting, e.g. --set learning.seed=7 (may be repeated; the last one wins)",
    )


def configuration_from(args: argparse.Namespace) -> Configuration:
    """Return the configuration that the parsed arguments and this process's environment ask for."""
    return load_configuration(args.config, args.overrides, os.environ)


def _merge(layers: Sequence[Tree]) -> Tree:
    values: dict[str, Any] = {"layers": layers}
    return dict(_Merged(**values).model_extra or {})


def _sections() -> dict[str, type[BaseModel]]:
    sections: dict[str, type[BaseModel]] = {}
    for name, field in Configuration.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        sections[name] = field.annotation
    return sections


def _read_file(path: Path | None, sources: Sources) -> Tree:
    if path is None:
        return {}
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from None
    for section, table in tree.items():
        for key in table if isinstance(table, dict) else ():
            sources.setdefault(f"{section}.{key}", str(path))
        sources.setdefault(section, str(path))
    return tree


def _without(weaker: Tree, stronger: _Given) -> Tree:
    """Take out the tables for which a stronger source gives whole ones: those replace, they do not add."""
    return {
        section: {key: value for key, value in table.items() if (section, key) not in stronger.whole}
        if isinstance(table, dict)
        else table
        for section, table in weaker.items()
    }


def _read_environment(environ: Mapping[str, str], sources: Sources) -> _Given:
    given = _Given({}, set())
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _place(given, path, environ[name], f"environment variable {name}", sources)
    return given


def _read_overrides(overrides: Sequence[str], sources: Sources) -> _Given:
    given = _Given({}, set())
    for override in overrides:
        key, equals, text = override.partition("=")
        flag = f"--set {key}"
        if not equals:
            raise SettingsError(f"{flag}: no value; write --set section.key=value")
        sources.pop(".".join(key.strip().split(".")[:2]), None)
        _place(given, key.strip().split("."), text, flag, sources)
    return given


def _place(given: _Given, path: list[str], text: str, source: str, sources: Sources) -> None:
    """Put the value where its name says, and note the source unless a stronger one has set the key."""
    sections = _sections()
    if path[0] not in sections:
        raise SettingsError(f"{source}: unknown section '{path[0]}'{_suggestion(path[0], sections)}")
    if len(path) < 2:
        raise SettingsError(
            f"{source}: names the section '{path[0]}' but no key of it; known: {', '.join(_fields(path[0]))}"
        )
    field = sections[path[0]].model_fields.get(path[1])
    if field is None:
        raise SettingsError(
            f"{source}: unknown key '{'.'.join(path)}'{_suggestion(path[1], _fields(path[0]))}"
        )
    sources.setdefault(".".join(path[:2]), source)
    if len(path) == 2:
        given.whole.add((path[0], path[1]))
    table = given.tree
    for name in path[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"{source}: '{name}' was given a value that is not a table")
    table[path[-1]] = _parse(text, field if len(path) == 2 else None)


def _parse(text: str, field: FieldInfo | None) -> object:
    """Return the value as JSON or TOML reads it, else the text; a text setting stays text (`group_id=5`)."""
    value: object = text
    try:
        value = json.loads(text)
    except ValueError:
        try:
            parsed = tomllib.loads(f"value = {text}")
            value = parsed["value"] if list(parsed) == ["value"] else text
        except tomllib.TOMLDecodeError:
            value = text
    return (
        text
        if field is not None and field.annotation in (str, Path) and not isinstance(value, str)
        else value
    )


def _rate_layer(merged: Tree) -> Tree:
    """Return the rate that goes with the rows' optimiser, which lies under everything else."""
    learning = merged.get("learning")
    optimiser = learning.get("rows_optimiser") if isinstance(learning, dict) else None
    rate = ROWS_RATES.get(optimiser) if isinstance(optimiser, str) else None
    return {} if rate is None else {"learning": {"rows_learning_rate": rate}}


def _preset_layer(explicit: Tree, sources: Sources) -> Tree:
    model = explicit.get("model", {})
    name = model.get("preset", "default") if isinstance(model, dict) else "default"
    if not isinstance(name, str) or name not in PRESETS:
        known = ", ".join(PRESETS)
        raise SettingsError(
            f"model.preset = {name!r} ({sources['model.preset']}): no such preset; known: {known}"
        )
    for section, table in PRESETS[name].items():
        for key in table:
            sources.setdefault(f"{section}.{key}", f"preset '{name}'")
    return PRESETS[name]


def _explain(detail: ErrorDetails, sources: Sources) -> str:
    """Say which key is wrong, who set it, and what is allowed."""
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    source = _source(location, detail["msg"], sources)
    if detail["type"] == "extra_forbidden" and len(location) == 1:
        return f"{key} ({source}): unknown section{_suggestion(key, _sections())}"
    if detail["type"] == "extra_forbidden":
        return f"{key} ({source}): unknown key{_suggestion(location[1], _fields(location[0]))}"
    allowed = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key + ': ' if key else ''}{allowed} ({source})"
    field = _fields(location[0]).get(location[1]) if len(location) > 1 else None
    meaning = f" [{field.description}]" if field is not None else ""
    value = (
        "…" if key.startswith("log.client") else json.dumps(detail["input"], default=str)
    )  # may be a password
    return f"{key} = {value} ({source}): {allowed}{meaning}"


def _source(location: Sequence[str], message: str, sources: Sources) -> str:
    """Name what set a key; for a rule over several keys, what set those that the message or section names."""
    named = [".".join(location[:2]), *re.findall(r"[a-z]+\.[a-z_]+", message)]
    found = {sources[name]: None for name in named if name in sources}
    if not found:
        sections = {*location[:1], *re.findall(r"([a-z]+): ", message)}
        found = {sources[key]: None for key in sources if key.split(".")[0] in sections}
    return ", ".join(found) or "by default"


def _fields(section: str) -> dict[str, FieldInfo]:
    return dict(_sections()[section].model_fields)


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
