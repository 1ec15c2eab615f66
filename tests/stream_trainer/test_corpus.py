"""The live corpus: a set in an order that is a function of the stream, through any number of commits."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_trainer.corpus import Corpus

OPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add_seen", "remove", "commit", "restart"]),
        st.lists(st.integers(0, 9), min_size=1, max_size=4),
    ),
    max_size=60,
)


class Model:
    """The same by a plain list: added at the end, and the last takes the place of what leaves."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.deleted: set[int] = set()

    def apply(self, kind: str, number: int) -> None:
        if kind == "remove":
            self.deleted.add(number)
            if number in self.order:
                place = self.order.index(number)
                last = self.order.pop()
                if last != number:
                    self.order[place] = last
        elif number not in self.order and (kind == "add" or number not in self.deleted):
            self.deleted.discard(number)
            self.order.append(number)


@settings(deadline=None)
@given(OPS)
def test_it_is_a_list_whatever_the_changes_commits_and_restarts(ops: list[tuple[str, list[int]]]) -> None:
    """A restart goes back to the last commit, and so does the model."""
    corpus, model = Corpus(), Model()
    stored: dict[bytes, bytes] = {}
    committed = Model()
    for kind, numbers in ops:
        if kind == "commit":
            stored.update(corpus.take_changes())
            committed.order, committed.deleted = list(model.order), set(model.deleted)
        elif kind == "restart":
            corpus = Corpus(reversed(stored.items()))
            model.order, model.deleted = list(committed.order), set(committed.deleted)
        else:
            for number in numbers:
                model.apply(kind, number)
            if kind == "add_seen":
                corpus.add_seen(numbers)
            else:
                for number in numbers:
                    getattr(corpus, kind)(number)
        assert corpus.numbers.tolist() == model.order
        assert len(corpus) == len(model.order)
        assert [n for n in range(10) if n in corpus] == sorted(model.order)


def test_a_late_click_does_not_revive_what_was_deleted() -> None:
    corpus = Corpus()
    corpus.add(1)
    corpus.remove(1)
    corpus.remove(2)  # never seen before
    corpus = Corpus(corpus.take_changes())
    corpus.add_seen([1, 2, 3, 3])
    assert corpus.numbers.tolist() == [3]
    corpus.add(1)
    assert corpus.numbers.tolist() == [3, 1]


def test_a_commit_holds_only_what_changed() -> None:
    corpus = Corpus()
    for number in range(4):
        corpus.add(number)
    corpus.take_changes()
    corpus.add(2)
    assert corpus.take_changes() == []
    corpus.remove(1)
    assert [int.from_bytes(key, "big") for key, _ in corpus.take_changes()] == [1, 3]  # 3 took the place of 1


def test_it_grows_and_shrinks_over_thousands() -> None:
    corpus = Corpus()
    for number in range(3000):
        corpus.add(number)
    assert corpus.numbers.tolist() == list(range(3000))
    for number in range(0, 3000, 2):
        corpus.remove(number)
    assert sorted(corpus.numbers.tolist()) == list(range(1, 3000, 2))
    assert Corpus(corpus.take_changes()).numbers.tolist() == corpus.numbers.tolist()
