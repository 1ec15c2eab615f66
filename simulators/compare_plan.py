"""What a comparison runs: which contenders, which settings, which seeds.

Pure. Owns the order and the equality of budgets: each tuned contender gets the same number of candidates, and
what is asked for on the command line is on top of all of them. Never trains anything.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.settings import load_configuration
from simulators.contenders import CONTENDERS, Contender, Overrides
from simulators.trials import Trial

QUICK_USERS, QUICK_EPOCHS = 2_000, 4
_ONE_THREAD = "learning.num_threads=1"  # trials run side by side, one thread each
_OF_TRIALS = {"epochs": "epochs", "als": "als"}  # sections that are not the configuration's → who knows them
# The mimic loss compares augmented vectors with embeddings: neither can change its width alone.
_TIED = {"model.augmented_dim": ("model.output_dim", "model.embedding_dim")}


class Row(NamedTuple):
    """One line of the result: a contender with the settings that were chosen or asked for.

    `value` is what a sweep sets its key to, None outside of sweeps.
    """

    name: str
    title: str
    contender: str
    overrides: Overrides
    value: str | None = None

    def trial(self, seed: int) -> Trial:
        """Return this row's trial of a seed."""
        return Trial(self.contender, self.overrides, seed)


class Sweep(NamedTuple):
    """One setting and the values it takes, the first of which is the reference."""

    key: str
    values: tuple[str, ...]


class Scored(NamedTuple):
    """A candidate's figures on the validation reviews."""

    overrides: Overrides
    hr50: float
    mrr10: float


def pick(models: str | None, default: Sequence[str]) -> list[str]:
    """Return the contenders that `--models a,b,c` names, or those of `default` that exist; each once.

    Raises:
        SettingsError: a name is unknown, or none is given.
    """
    names = [name.strip() for name in models.split(",")] if models is not None else list(default)
    if models is None:
        names = [name for name in names if name in CONTENDERS]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown or not names:
        raise SettingsError(
            f"no contender is called '{unknown[0] if unknown else ''}'; known: {', '.join(CONTENDERS)}"
        )
    return list(dict.fromkeys(names))


def candidates(contender: Contender, quick: bool) -> tuple[Overrides, ...]:
    """Return what is tried to tune a contender: nothing where there is no choice."""
    grid = contender.grid
    if len(grid) < 2:
        return ()
    return (grid[0], grid[-1]) if quick else grid


def tuned_as(name: str) -> str:
    """Return the contender whose candidates are tried for this one: itself, unless it is an ablation."""
    return CONTENDERS[name].settings_of or name


def check_budgets(names: Sequence[str], quick: bool) -> None:
    """Check that every contender that is tuned at all has equally many candidates."""
    budgets = {name: len(candidates(CONTENDERS[tuned_as(name)], quick)) for name in names}
    assert len({budget for budget in budgets.values() if budget}) <= 1, f"unequal budgets: {budgets}"


def overrides_for(
    contender: Contender, chosen: Overrides, asked: Sequence[str], quick: bool, last: Overrides = ()
) -> Overrides:
    """Return a trial's overrides, of which later ones win: tuned, then quick, then asked for, then swept.

    What a contender does not know (`als.factors` of DAT, anything of popularity) is left out.
    """
    quick_ones = (f"epochs.count={QUICK_EPOCHS}",) if quick else ()
    both = (_ONE_THREAD, *chosen, *quick_ones, *asked, *last)
    return tuple(override for override in both if _knows(contender, override))


def check_overrides(contender: Contender, overrides: Overrides) -> None:
    """Check settings before anything runs.

    Raises:
        SettingsError: a setting is unknown or impossible.
    """
    if contender.how in ("epochs", "stream"):
        ours = [text for text in (*contender.overrides, *overrides) if _section(text) not in _OF_TRIALS]
        load_configuration(None, ours, {})


def parse_sweep(text: str) -> Sweep:
    """Return the sweep that `--sweep key=v1,v2` asks for; a bare key is looked for in all sections.

    >>> parse_sweep("augmented_dim=0,8"), parse_sweep("model.hidden=[64],[256,128]").values
    (Sweep(key='model.augmented_dim', values=('0', '8')), ('[64]', '[256,128]'))

    Raises:
        SettingsError: no such key, or fewer than two values.
    """
    key, _, listed = text.partition("=")
    values = tuple(value.strip() for value in re.split(r",(?![^\[{]*[\]}])", listed) if value.strip())
    if len(values) < 2 or len(set(values)) < len(values):
        raise SettingsError(f"--sweep {text}: write --sweep key=v1,v2,… with two or more different values")
    if _section(key) in _OF_TRIALS:
        return Sweep(key, values)
    sections = {name: type(section).model_fields for name, section in Configuration()}
    known = {f"{section}.{field}" for section, fields in sections.items() for field in fields}
    found = [name for name in (key, f"model.{key}", f"learning.{key}") if name in known]
    found += sorted(name for name in known if name.endswith(f".{key}"))
    if not found:
        bare = {name.partition(".")[2]: name for name in known}
        near = difflib.get_close_matches(key.rpartition(".")[2], bare, n=1)
        hint = f"did you mean '{bare[near[0]]}'?" if near else "deploy/dualstream.toml lists them"
        raise SettingsError(f"--sweep: there is no setting '{key}'; {hint}")
    return Sweep(found[0], values)


def sweep_overrides(contender: Contender, overrides: Overrides, key: str, value: str) -> Overrides:
    """Return what sets a swept key, with the widths that must follow it where it cannot change alone.

    Raises:
        SettingsError: the contender does not know the key, or the value is impossible.
    """
    alone = (f"{key}={value}",)
    if not _knows(contender, alone[0]):
        raise SettingsError(f"--sweep {key}: '{contender.title}' has no such setting")
    tied = (*alone, *(f"{other}={value}" for other in _TIED.get(key, ())))
    for count in range(1, len(tied)):
        try:
            check_overrides(contender, (*overrides, *tied[:count]))
            return tied[:count]
        except SettingsError:
            continue
    check_overrides(contender, (*overrides, *tied))
    return tied


def best(scored: Sequence[Scored]) -> Scored:
    """Return the candidate with the highest HR@50; of equal ones that of higher MRR, then the first tried.

    >>> best([Scored(("a=1",), 0.5, 0.1), Scored(("a=2",), 0.5, 0.3), Scored(("a=3",), 0.5, 0.3)]).overrides
    ('a=2',)
    """
    return max(scored, key=lambda each: (each.hr50, each.mrr10))


def rows_of(
    names: Sequence[str],
    chosen: Mapping[str, Overrides],
    asked: Sequence[str],
    quick: bool,
    sweep: Sweep | None,
) -> list[Row]:
    """Return the lines of the result, in order: contenders, and for a sweep each with every value.

    Raises:
        SettingsError: a setting that was asked for is unknown or impossible.
    """
    rows = []
    for name in names:
        contender = CONTENDERS[name]
        base = overrides_for(contender, chosen.get(name, ()), asked, quick)
        check_overrides(contender, base)
        if sweep is None:
            rows.append(Row(name, contender.title, name, base))
            continue
        for value in sweep.values:
            last = sweep_overrides(contender, base, sweep.key, value)
            label = f"{sweep.key.partition('.')[2]} = {value}"
            overrides = (*base, *last)
            rows.append(Row(f"{name} {label}", f"{contender.title}, {label}", name, overrides, value))
    return rows


def _section(override: str) -> str:
    return override.partition(".")[0]


def _knows(contender: Contender, override: str) -> bool:
    section = _section(override)
    if section in _OF_TRIALS:
        return contender.how == _OF_TRIALS[section]
    return contender.how in ("epochs", "stream")
