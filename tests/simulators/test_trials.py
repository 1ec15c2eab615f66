"""Every contender learns a tiny generated set and ranks it; what is asked for wrongly is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.settings import load_configuration
from simulators.compare_plan import tuned_as
from simulators.contenders import CONTENDERS
from simulators.dataset import load_dataset
from simulators.evaluate import Held, hold_out
from simulators.synthetic import generate
from simulators.trials import Trial, run_trial, settings_of, split_settings

SMALL = ("learning.batch_size=64", "model.hidden=[32]")
AS_PAPER = "dat_paper_weights"
UNTUNED = ("popularity", "random", AS_PAPER)
TUNED = [name for name in CONTENDERS if name not in UNTUNED]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder = tmp_path_factory.mktemp("generated")
    generate(folder, 40, 30, 300, 3, seed=2)
    return hold_out(load_dataset(folder), None, None)


@pytest.mark.parametrize("name", CONTENDERS)
def test_each_contender_learns_and_ranks(name: str, held: Held, tmp_path: Path):
    how = CONTENDERS[name].how
    small = {"epochs": (*SMALL, "epochs.count=1"), "stream": SMALL, "als": ("als.iterations=2",)}
    result = run_trial(Trial(name, small.get(how, ()), seed=1), held, tmp_path)
    assert result.ranks.shape == (len(held.test.reviews),)
    assert np.all((result.ranks >= 1) & (result.ranks <= 30))
    assert len(np.unique(result.ranks)) > 5
    assert 0 <= result.seconds < 60
    assert result.peak_mib > 50


@pytest.mark.parametrize("name", ["default", "default_streamed", "wals", "random"])
def test_the_same_trial_gives_the_same_ranks_and_another_seed_does_not(name: str, held: Held, tmp_path: Path):
    small = (*SMALL, "epochs.count=1") if CONTENDERS[name].how in ("epochs", "stream") else ()
    ranks = [
        run_trial(Trial(name, small, seed), held, tmp_path / str(number)).ranks.tobytes()
        for number, seed in enumerate((0, 0, 1))
    ]
    assert ranks[0] == ranks[1] != ranks[2]


def test_a_trial_is_told_by_all_its_settings_and_not_by_how_they_came():
    default = Configuration().learning.rehearsal_ratio
    as_it_is, named = (
        Trial("default_streamed"),
        Trial("default_streamed", (f"learning.rehearsal_ratio={default}",)),
    )
    assert settings_of(as_it_is) == settings_of(named)
    assert settings_of(as_it_is) != settings_of(Trial("default_streamed", ("learning.rehearsal_ratio=5",)))
    assert settings_of(Trial("dat")) != settings_of(Trial("dat", ("epochs.in_order=true",)))
    assert settings_of(Trial("wals")) != settings_of(Trial("wals", ("als.alpha=3",)))
    json.dumps([settings_of(Trial(name)) for name in CONTENDERS])


def configuration_of(overrides: tuple[str, ...]) -> Configuration:
    return load_configuration(None, split_settings(overrides)[1], {})


def test_budgets_are_equal_and_every_candidate_is_possible_and_different():
    assert len({len(CONTENDERS[tuned_as(name)].grid) for name in TUNED}) == 1
    for contender in CONTENDERS.values():
        assert len(set(contender.grid)) == len(contender.grid) != 1
        for candidate in contender.grid:
            own, _ = split_settings([*contender.overrides, *candidate])
            configuration_of((*contender.overrides, *candidate))
            assert contender.how != "als" or own.als.factors <= 64


def test_contenders_differ_in_what_their_names_say():
    settings = {name: configuration_of(CONTENDERS[name].overrides).model for name in (*TUNED, AS_PAPER)}
    dat, paper, default = (settings[name].model_dump() for name in ("dat", AS_PAPER, "default"))

    def changes(name: str, reference: dict[str, object]) -> dict[str, object]:
        ours = settings[name].model_dump()
        return {key: ours[key] for key in ours if ours[key] != reference[key]}

    assert changes("dat_without_cal", dat) == {"lambda_cal": 0.0}
    assert changes("dat_own_tower", dat) == {"own_tower_mimic": True}
    assert changes("dat", paper) == {"lambda_user": 20.0, "lambda_item": 20.0, "lambda_cal": 0.3}
    assert changes("two_tower", paper) == {"name": "two_tower", "lambda_cal": 0.0}
    assert changes("default_without_augmented", default) == {"augmented_dim": 0}
    assert changes("default_streamed", default) == {}
    assert changes("default_without_augmented_streamed", default) == {"augmented_dim": 0}


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        (Trial("bert4rec"), "known: dat, "),
        (Trial("dat", ("model.tau=1",)), "tau"),
        (Trial("dat", ("epochs.count=none",)), r"epochs\.count = none"),
        (Trial("dat", ("epochs.number=3",)), r"epochs\.number"),
        (Trial("wals", ("als.factors=0",)), r"als\.factors = 0"),
        (Trial("wals", ("learning.batch_size=3",)), r"wals does not know .*batch_size"),
    ],
)
def test_what_does_not_exist_is_refused(trial: Trial, message: str, held: Held, tmp_path: Path):
    with pytest.raises(SettingsError, match=message):
        run_trial(trial, held, tmp_path)
