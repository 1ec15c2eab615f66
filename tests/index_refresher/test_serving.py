"""What is answered: one generation at a time, the newest commit, popularity for the unknown, nothing the user
has had.
"""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from served_world import FakeEmbedder, FakeReader, World

from feature_store.errors import GenerationError, StoreError
from feature_store.store import CommitInfo
from index_refresher import generation
from index_refresher.manifest import Manifest
from index_refresher.names import StoreNames
from index_refresher.serving import NotReadyError, Recommender

Publish = Callable[..., Manifest]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _ids(recommender: Recommender, user: str, k: int) -> list[str]:
    return [item_id for item_id, _ in recommender.recommend([user], k).answers[0].items]


def test_not_ready_says_why_until_the_first_generation(world: World) -> None:
    with pytest.raises(StoreError):
        world.recommender.reload()
    assert world.recommender.not_ready() == "there is no feature store yet"
    world.reader = FakeReader()
    world.recommender.reload()
    with pytest.raises(NotReadyError, match="there is no generation in"):
        world.recommender.recommend(["u"], 1)
    world.publish(1, {"a": 1})
    world.recommender.reload()
    assert world.recommender.not_ready() is None


def test_known_users_get_the_models_answer_and_others_the_popular_items(world: World) -> None:
    name = world.start({"a": 3, "b": 2, "c": 1})
    answers = world.recommender.recommend(["u1", "stranger", "u2"], 2)
    assert [answer.source for answer in answers.answers] == ["model", "popularity", "model"]
    assert [answer.user_id for answer in answers.answers] == ["u1", "stranger", "u2"]
    assert [answer.items for answer in answers.answers] == [
        [("a", 3.0), ("b", 2.0)],
        [("c", 3.0), ("b", 2.0)],
        [("a", 3.0), ("b", 2.0)],
    ]
    assert (answers.generation, answers.commit, answers.watermark_ms) == (name, 5, 50_000)
    assert (world.value("answers_total", source="model"), world.value("commit")) == (2, 5)


def test_a_query_that_is_not_finite_gets_the_popular_items(world: World) -> None:
    world.start({"a": 2, "b": 1})
    answers = world.recommender.recommend(["nan", "u"], 1).answers
    assert [(answer.source, answer.items) for answer in answers] == [
        ("popularity", [("b", 2.0)]),
        ("model", [("a", 2.0)]),
    ]


def test_history_is_left_out_and_its_place_filled(world: World) -> None:
    world.start({"a": 4, "b": 3, "c": 2, "d": 1})
    FakeEmbedder.history = {"u": ["a", "c", "gone"], "cold": ["d"], "u-all": ["a", "b", "c", "d"]}
    assert _ids(world.recommender, "u", 2) == ["b", "d"]
    assert _ids(world.recommender, "u", 9) == ["b", "d"]
    assert _ids(world.recommender, "cold", 2) == ["c", "b"]
    assert _ids(world.recommender, "u-all", 2) == []
    answers = world.recommender.recommend(["u", "u-new"], 2).answers
    assert [[item_id for item_id, _ in answer.items] for answer in answers] == [["b", "d"], ["a", "b"]]
    kept = world.make(exclude_history=False)
    kept.reload()
    assert _ids(kept, "u", 2) == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["index.faiss", "items.msgpack", "popular.msgpack", "manifest.json", "CURRENT"]
)
def test_a_corrupt_new_generation_leaves_the_old_one_until_a_good_one(world: World, name: str) -> None:
    old = world.start({"a": 1})
    bad = world.publish(6, {"b": 1})
    file = world.path / name if name == "CURRENT" else world.path / bad / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(GenerationError):
        world.recommender.reload()
    assert world.recommender.recommend(["u"], 1).generation == old
    assert world.recommender.not_ready() is None
    good = world.publish(7, {"c": 1})
    world.recommender.reload()
    assert world.recommender.recommend(["u"], 1).generation == good
    assert world.value("swaps_total") == 2


def test_a_start_with_damaged_generations_serves_the_newest_whole_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    old, *bad = [world.publish(commit, {"a": 1}) for commit in (1, 2, 3)]
    for name in bad:
        (world.path / name / "index.faiss").write_bytes(b"")
    world.reader = FakeReader()
    world.recommender.reload()
    assert world.recommender.recommend(["u"], 1).generation == old
    assert caplog.messages[0].startswith(f"generation {old} stands in for the one in use: ")
    assert f"{bad[1]}/index.faiss is damaged" in caplog.messages[0]


def test_generations_share_the_names_that_were_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each looks whether they are still the store's."""
    num_checks = Counter[StoreNames]()
    monkeypatch.setattr(StoreNames, "check", lambda names: num_checks.update([names]))
    world.start({"a": 1.0})
    for commit in (5, 6):
        world.publish(commit, {"b": 1.0})
        world.recommender.reload()
    (names,) = set(FakeEmbedder.given)
    assert (len(FakeEmbedder.given), num_checks) == (3, {names: 3})
    assert world.reader is not None
    world.reader.commit = CommitInfo(3)  # a backup was put in the store's place
    world.publish(3, {"c": 1.0})
    world.recommender.reload()
    assert FakeEmbedder.given[-1] is not names


def test_a_rollback_is_followed(world: World) -> None:
    old = world.start({"a": 1})
    world.publish(6, {"b": 1})
    world.recommender.reload()
    generation.rollback(world.path)
    world.recommender.reload()
    assert world.recommender.recommend(["u"], 1).generation == old
    assert _ids(world.recommender, "u", 1) == ["a"]


def test_a_new_commit_is_known_without_a_new_generation(world: World) -> None:
    world.start({"a": 1})
    assert world.reader is not None
    world.reader.commit = CommitInfo(9, 90_000, 95_000)
    world.recommender.reload()
    answers = world.recommender.recommend(["u"], 1)
    assert (answers.commit, answers.watermark_ms) == (9, 90_000)


def test_click_to_served_is_observed_once_a_commit_at_its_first_answer(world: World) -> None:
    world.start({"a": 1})  # the newest event of the commit is of 60 s
    assert world.reader is not None
    world.now_ms = 61_500
    world.recommender.recommend(["u"], 1)
    world.now_ms = 99_000
    world.recommender.recommend(["u"], 1)
    world.recommender.reload()
    world.recommender.recommend(["stranger"], 1)
    assert world.value("click_to_served_seconds_sum") == 1.5
    world.reader.commit = CommitInfo(6, 50_000, 60_000)  # nothing newer than before
    world.recommender.reload()
    world.recommender.recommend(["u"], 1)
    world.reader.commit = CommitInfo(7, 90_000, 97_000)
    world.recommender.reload()
    assert world.value("click_to_served_seconds_count") == 1
    world.recommender.recommend(["u"], 1)
    assert world.value("click_to_served_seconds_sum") == 1.5 + 2.0
    assert world.value("click_to_served_seconds_count") == 2


def test_age_and_staleness(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start({"a": 1})  # generation made at 0, watermark at 50 s
    monkeypatch.setattr("index_refresher.metrics.time.time", lambda: 80.0)
    assert world.value("generation_age_seconds") == 80
    assert world.value("staleness_seconds") == 30


def test_swaps_under_fire_never_give_a_torn_answer(world: World) -> None:
    """Generation n scores each of its own items n: an answer mixed from two shows as a wrong ID or score."""
    world.start({f"4-{i}": 4.0 for i in range(5)})
    wrong: list[str] = []
    seen: set[str] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers = world.recommender.recommend(["u1", "stranger"], 3)
            commit = answers.generation.split("-")[1]
            seen.add(answers.generation)
            by_model, by_popularity = answers.answers
            right = all(
                item.startswith(f"{commit}-") and score == float(commit) for item, score in by_model.items
            )
            right &= [item for item, _ in by_popularity.items] == [f"{commit}-{i}" for i in (4, 3, 2)]
            if not right or len(by_model.items) != 3:
                wrong.append(str(answers))

    def watched() -> None:
        try:
            ask()
        except BaseException as error:
            wrong.append(repr(error))
            raise

    threads = [threading.Thread(target=watched) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for commit in range(5, 35):
            world.publish(commit, {f"{commit}-{i}": float(commit) for i in range(5)})
            world.recommender.reload()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 5
    assert world.value("swaps_total") == 31
