"""What is run: equal budgets, settings that belong to the contender, sweeps; and what is refused before."""

import pytest

from feature_store.errors import SettingsError
from simulators.compare_plan import (
    Scored,
    best,
    candidates,
    check_budgets,
    overrides_for,
    parse_sweep,
    pick,
    rows_of,
)
from simulators.contenders import CONTENDERS, Contender


@pytest.mark.parametrize("quick", [False, True])
def test_every_contender_that_is_tuned_has_the_same_budget(quick: bool) -> None:
    check_budgets(list(CONTENDERS), quick)
    budgets = {len(set(candidates(contender, quick))) for contender in CONTENDERS.values()}
    assert len(budgets - {0}) == 1
    assert 0 in budgets  # popularity, random and the paper's weights stay as they are


def test_unequal_budgets_are_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    unfair = CONTENDERS["dat"]._replace(grid=((), ("epochs.count=6",)))
    monkeypatch.setattr("simulators.compare_plan.CONTENDERS", {**CONTENDERS, "dat": unfair})
    with pytest.raises(AssertionError, match="unequal budgets"):
        check_budgets(["dat", "wals", "popularity"], quick=False)


def test_every_candidate_is_a_setting_that_exists() -> None:
    for name, contender in CONTENDERS.items():
        for candidate in candidates(contender, quick=False):
            assert rows_of([name], {name: candidate}, (), False, None)


def test_unknown_contenders_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'datt'; known: .*two_tower"):
        pick("wals,datt", ())
    assert pick("wals, dat,wals", ()) == ["wals", "dat"]
    assert pick(None, ["dat", "not made yet"]) == ["dat"]


def test_settings_go_to_those_who_know_them_and_what_is_asked_for_wins() -> None:
    asked = ("als.factors=8", "epochs.count=3", "model.dropout=0.5")
    of = {how: Contender("", "", how) for how in ("epochs", "stream", "als", "popularity")}
    chosen = ("model.dropout=0.1",)
    assert overrides_for(of["epochs"], chosen, asked, quick=True)[1:] == (
        "model.dropout=0.1",
        "epochs.count=4",
        "epochs.count=3",
        "model.dropout=0.5",
    )
    assert overrides_for(of["stream"], chosen, asked, quick=True)[1:] == (*chosen, "model.dropout=0.5")
    assert overrides_for(of["als"], (), asked, quick=False) == ("als.factors=8",)
    assert overrides_for(of["popularity"], (), asked, quick=True) == ()


def test_ties_go_to_mrr_then_to_the_first_tried() -> None:
    scored = [Scored(("a",), 0.4, 0.9), Scored(("b",), 0.5, 0.1), Scored(("c",), 0.5, 0.2)]
    assert best(scored).overrides == ("c",)
    assert best([*scored, Scored(("d",), 0.5, 0.2)]).overrides == ("c",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("augmented_dimm=0,8", r"no setting 'augmented_dimm'; did you mean 'model.augmented_dim'"),
        ("model.nonsense_xyz=0,8", "no setting 'model.nonsense_xyz'"),
        ("augmented_dim=8", "two or more"),
        ("augmented_dim=8,8", "two or more"),
        ("augmented_dim", "two or more"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse_sweep(text)


def test_a_bare_key_finds_its_section() -> None:
    assert parse_sweep("dropout=0.1,0.2").key == "model.dropout"
    assert parse_sweep("rehearsal_ratio=0,4").key == "learning.rehearsal_ratio"
    assert parse_sweep("als.factors=8,16").key == "als.factors"


def test_a_sweep_makes_a_row_of_each_value_and_widths_follow_where_they_must() -> None:
    sweep = parse_sweep("augmented_dim=0,8")
    without, narrow = rows_of(["dat"], {"dat": ("epochs.count=6",)}, (), False, sweep)
    assert (without.name, without.value) == ("dat augmented_dim = 0", "0")
    assert without.overrides[-2:] == ("epochs.count=6", "model.augmented_dim=0")
    assert narrow.overrides[-2:] == ("model.augmented_dim=8", "model.output_dim=8")
    (both,) = rows_of(["default"], {}, (), False, sweep)[1:]  # residual: the ID's embedding must follow too
    assert both.overrides[-1] == "model.embedding_dim=8"


def test_a_sweep_of_what_a_contender_does_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="has no such setting"):
        rows_of(["wals"], {}, (), False, parse_sweep("dropout=0.1,0.2"))
    with pytest.raises(SettingsError, match="dropout"):
        rows_of(["dat"], {}, (), False, parse_sweep("dropout=0.1,7"))
    with pytest.raises(SettingsError, match=r"model\.nonsense"):
        rows_of(["dat"], {}, ("model.nonsense=1",), False, None)
