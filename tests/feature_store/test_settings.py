"""Settings: which source wins, what a preset is, and that a refusal names key, source and what is allowed."""

import argparse
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.presets import PRESETS
from feature_store.settings import add_settings_arguments, configuration_from, load_configuration


def from_flags(*overrides: str) -> Configuration:
    return load_configuration(None, overrides, {})


def from_file(folder: Path, text: str) -> Configuration:
    path = folder / "some.toml"
    path.write_text(text, encoding="utf-8")
    return load_configuration(path, [], {})


def test_nothing_given_is_the_defaults() -> None:
    assert load_configuration(None, [], {"PATH": "/bin", "DUALSTREAMER": "1"}) == Configuration()


def test_file_yields_to_environment_yields_to_flags(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[learning]\nseed = 1\nbatch_size = 10\nnum_threads = 4\n")
    environ = {"DUALSTREAM_LEARNING__SEED": "2", "DUALSTREAM_LEARNING__BATCH_SIZE": "20"}
    learning = load_configuration(path, ["learning.seed=3"], environ).learning
    assert (learning.seed, learning.batch_size, learning.num_threads) == (3, 20, 4)
    assert learning.rehearsal_ratio == Configuration().learning.rehearsal_ratio


def test_the_last_of_two_flags_wins() -> None:
    assert from_flags("learning.seed=1", "learning.seed=2").learning.seed == 2


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("model.hidden=[64, 32]", "model", "hidden", [64, 32]),
        ("model.dropout=1e-2", "model", "dropout", 0.01),
        ("model.temperature=1", "model", "temperature", 1.0),
        ("model.logq=true", "model", "logq", True),
        ("store.path=build/x", "store", "path", Path("build/x")),
        ('store.path="build/x"', "store", "path", Path("build/x")),
        ("store.path=17", "store", "path", Path("17")),
        ("log.group_id=17", "log", "group_id", "17"),
        ("refresh.full_cron=*/10 * * * *", "refresh", "full_cron", "*/10 * * * *"),
        ("refresh.full_cron=", "refresh", "full_cron", ""),
        ('log.client={"api_version": "4"}', "log", "client", {"api_version": "4"}),
        ("log.client={retries = 3, acks = 'all'}", "log", "client", {"retries": 3, "acks": "all"}),
        ("log.client.security_protocol=SASL_SSL", "log", "client", {"security_protocol": "SASL_SSL"}),
        ("features.item_numeric=['price']", "features", "item_numeric", ["price"]),
        ("log.bootstrap_servers=a:1,b=2", "log", "bootstrap_servers", "a:1,b=2"),
    ],
)
def test_values_on_the_command_line(override: str, section: str, key: str, expected: object) -> None:
    assert getattr(getattr(from_flags(override), section), key) == expected


def test_a_whole_table_replaces_a_weaker_one_and_a_key_of_it_adds(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text("[features]\nitem_categorical = { category = 2, brand = 1 }\n")
    whole, part = "features.item_categorical={category=3}", "features.item_categorical.size=4"
    variable = {"DUALSTREAM_FEATURES__ITEM_CATEGORICAL": '{"category": 5}'}

    def counts(flags: list[str], environ: dict[str, str]) -> dict[str, int]:
        return load_configuration(file, flags, environ).features.item_categorical

    assert counts([whole], {}) == {"category": 3}
    assert counts([part], {}) == {"brand": 1, "category": 2, "size": 4}
    assert counts([], variable) == {"category": 5}
    assert counts([part], variable) == {"category": 5, "size": 4}
    with pytest.raises(SettingsError, match=r"item_categorical.*keeps 0 values.*\(--set"):
        counts(["features.item_categorical={category=0}"], {})


def test_a_nested_variable_goes_into_its_table() -> None:
    environ = {"DUALSTREAM_LOG__CLIENT__SASL_MECHANISM": "PLAIN", "DUALSTREAM_LOG__CLIENT__RETRIES": "3"}
    assert load_configuration(None, [], environ).log.client == {"sasl_mechanism": "PLAIN", "retries": 3}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["learning.batchsize=3"], ["learning.batchsize", "--set", "did you mean 'batch_size'"]),
        (["learnin.batch_size=3"], ["'learnin'", "did you mean 'learning'"]),
        (["zzz.a=3"], ["'zzz'", "known: store, log"]),
        (["learning=3"], ["'learning'", "batch_size"]),
        (["learning.seed"], ["learning.seed", "section.key=value"]),
        (["learning.seed.x=1"], ["learning.seed", "valid integer"]),
        (["learning.seed=1", "learning.seed.x=1"], ["learning.seed.x", "not a table"]),
        (["learning.batch_size=0"], ["learning.batch_size = 0", "--set learning.batch_size", "equal to 1"]),
        (["learning.batch_size=true"], ["learning.batch_size = true", "valid integer"]),
        (["learning.batch_size='64'"], ['learning.batch_size = "64"', "valid integer"]),
        (["learning.batch_size=1.5"], ["learning.batch_size = 1.5", "integer"]),
        (["learning.batch_size=null"], ["learning.batch_size = null", "integer"]),
        (["learning.batch_size=1\nseed = 3"], ["learning.batch_size", "valid integer"]),
        (["model.logq=1"], ["model.logq = 1", "valid boolean"]),
        (["model.dropout=nan"], ["model.dropout = NaN", "finite"]),
        (["model.hidden=[1, 'a']"], ["model.hidden.1", "valid integer"]),
        (["log.kind=redis"], ["log.kind", "'file' or 'kafka'"]),
        (["topics.users=clicks"], ["topics", "must differ", "--set topics.users"]),
        (["learning.shown_negatives=3"], ["learning.shown_negatives needs join.emit", "--set"]),
        (["model.name=fm", "model.output_dim=16", "model.residual=false"], ["'fm' needs model.output_dim"]),
        (["model.preset=mind", "model.history_length=0"], ["'mind' needs model.history_length", "preset"]),
        (["model.name=fm", "model.history_length=0"], ["'fm' needs something of users"]),
        (["model.name=two_tower", "model.history_length=0"], ["'two_tower' needs something of users"]),
        (["model.augmented_dim=0", "model.history_length=0"], ["'dat' needs something of users"]),
        (["learning.shared_negatives=0"], ["no kind of negatives", "--set learning.shared_negatives"]),
        (["model.preset=best"], ["model.preset = 'best'", "--set", "default, paper, paper_mended"]),
        (["model.preset.x=1"], ["model.preset", "reproduction, youtube_dnn, fm, mind"]),
    ],
)
def test_a_bad_flag_is_refused_by_name(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        from_flags(*overrides)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("DUALSTREAM_LEARNING__SEEDS", "1", "did you mean 'seed'"),
        ("DUALSTREAM_LERNING__SEED", "1", "did you mean 'learning'"),
        ("DUALSTREAM_LEARNING", "1", "no key"),
        ("DUALSTREAM_", "1", "unknown section ''"),
        ("DUALSTREAM_LEARNING__SEED", "-1", "greater than or equal to 0"),
        ("DUALSTREAM_LEARNING__SEED", "one", "valid integer"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable: str, value: str, part: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"environment variable {variable}")) as caught:
        load_configuration(None, [], {variable: value})
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[learning]\nseed = 1\nseeds = 2\n", "learning.seeds"),
        ("[lerning]\nseed = 1\n", "did you mean 'learning'"),
        ("_case_sensitive = true\n", "_case_sensitive"),
        ("layers = 1\n", "layers"),
        ("model_config = {}\n", "model_config"),
        ("learning = 3\n", "learning = 3"),
        ("[learning]\nseed = 1979-05-27\n", "valid integer"),
        ("[learning]\nseed = \n", "line 2"),
        ("[learning]\nseed = 1\n[learning]\n", "line 3"),
        ("[model]\ndropout = inf\n", "finite"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path / "some.toml"))) as caught:
        from_file(tmp_path, text)
    assert part in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_configuration(path, [], {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"{tmp_path / 'no.toml'}: No such file")):
        load_configuration(tmp_path / "no.toml", [], {})
    with pytest.raises(SettingsError, match="directory"):
        load_configuration(tmp_path, [], {})


def test_the_source_named_is_the_one_that_won(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[learning]\nseed = 1\n")
    with pytest.raises(SettingsError) as caught:
        load_configuration(path, ["learning.seed=-1"], {"DUALSTREAM_LEARNING__SEED": "2"})
    assert "--set learning.seed" in str(caught.value)
    assert "some.toml" not in str(caught.value)
    assert "DUALSTREAM" not in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"model\.dropout = 2 .*; learning\.seed = -1 "):
        from_flags("model.dropout=2", "learning.seed=-1", "learning.batch_size=1")


def test_secrets_are_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        from_flags("log.client.sasl_plain_password=['hunter2']")
    assert "hunter2" not in str(caught.value)
    assert "log.client" in str(caught.value)


def test_a_preset_lies_under_explicit_keys_of_any_source(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[model]\npreset = 'paper'\ntemperature = 0.5\n")
    config = load_configuration(path, ["learning.batch_size=7"], {"DUALSTREAM_MODEL__HIDDEN": "[16]"})
    assert config.model.loss == "bce"
    assert (config.model.temperature, config.model.hidden, config.learning.batch_size) == (0.5, [16], 7)
    assert config.learning.negatives_per_positive == 5


def test_an_explicit_key_overrides_a_preset_even_with_the_default_value() -> None:
    assert from_flags("model.preset=paper", "model.dropout=0.3").model.dropout == 0.3


def test_a_stronger_source_chooses_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[model]\npreset = 'paper'\n")
    assert load_configuration(path, ["model.preset=default"], {}).model.loss == "sampled_softmax"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_possible_and_change_only_model_and_learning(name: str) -> None:
    config = from_flags(f"model.preset={name}")
    assert config.model.preset == name
    unchanged = {"model": config.model, "learning": config.learning}
    assert config == Configuration().model_copy(update=unchanged)
    for section, table in PRESETS[name].items():
        for key, value in table.items():
            assert getattr(getattr(config, section), key) == value


def test_the_papers_and_the_reproductions_figures() -> None:
    paper = from_flags("model.preset=paper")
    reproduction = from_flags("model.preset=reproduction")
    assert (paper.model.hidden, paper.model.output_dim, paper.learning.batch_size) == ([256, 128], 32, 256)
    assert (paper.model.lambda_user, paper.model.lambda_item, paper.model.lambda_cal) == (0.5, 0.5, 1.0)
    assert (reproduction.model.hidden, reproduction.learning.batch_size) == ([128, 64], 1536)
    assert reproduction.learning.rows_learning_rate == reproduction.learning.dense_learning_rate == 0.05
    assert reproduction.model.own_tower_mimic
    assert not paper.model.own_tower_mimic


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ((), 0.05),
        (("learning.rows_optimiser=adagrad",), 0.05),
        (("learning.rows_optimiser=rowwise_adam",), 0.003),
        (("learning.rows_optimiser=adam",), 0.003),
        (("learning.rows_optimiser=adam", "learning.rows_learning_rate=0.01"), 0.01),
        (("model.preset=reproduction",), 0.05),
    ],
)
def test_the_rate_of_rows_goes_with_their_optimiser_unless_it_is_given(
    flags: tuple[str, ...], rate: float
) -> None:
    assert from_flags(*flags).learning.rows_learning_rate == rate


def test_the_mended_paper_is_the_paper_but_for_two_settings() -> None:
    paper, mended = from_flags("model.preset=paper"), from_flags("model.preset=paper_mended")
    two = {"preset": "paper_mended", "last_relu": False, "temperature": 0.1}
    assert mended.model == paper.model.model_copy(update=two)
    assert mended.learning == paper.learning


def test_an_impossible_mix_with_a_preset_names_the_preset() -> None:
    with pytest.raises(SettingsError, match=r"residual needs.*--set model\.residual, preset 'paper'"):
        from_flags("model.preset=paper", "model.residual=true", "model.embedding_dim=16")


def test_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[learning]\nseed = 1\nbatch_size = 8\n")
    monkeypatch.setenv("DUALSTREAM_LEARNING__NUM_THREADS", "3")
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser)
    args = parser.parse_args(["--config", str(path), "--set", "learning.seed=5", "--set", "model.dropout=0"])
    config = configuration_from(args)
    assert (config.learning.seed, config.learning.batch_size, config.learning.num_threads) == (5, 8, 3)
    assert config.model.dropout == 0
    assert "--set SECTION.KEY=VALUE" in parser.format_help()


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_text_is_a_configuration_or_a_settings_error(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"model.{key}={value}", f"log.client={value}", f"store.path={value}"):
        try:
            config = from_flags(override)
        except SettingsError:
            continue
        assert Configuration.model_validate_json(config.model_dump_json()) == config


def test_the_configuration_survives_json() -> None:
    config = from_flags("model.preset=reproduction", "features.item_numeric=['price']")
    assert Configuration.model_validate(json.loads(config.model_dump_json())) == config
