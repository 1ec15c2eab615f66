"""Going back to an earlier generation, the hold on it, and its end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from feature_store.errors import GenerationError
from index_refresher import generation
from index_refresher.manifest import Manifest

Publish = Callable[..., Manifest]


def _name_in_use(path: Path) -> str | None:
    used = generation.current(path)
    return used and used.folder.name


def _newest(path: Path) -> tuple[str, bool]:
    """The name of the newest generation that CURRENT knows, and whether it is held back."""
    used = generation.current(path)
    assert used is not None
    return used.newest.name, used.held


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


@pytest.mark.parametrize(
    "text", ["", "00000001-1", "00000009-9\n", "../00000001-1\n", "00000001-1\nrolled back\n", "\xff\0\n"]
)
def test_a_damaged_pointer_is_refused_and_mended(tmp_path: Path, publish: Publish, text: str) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "CURRENT").write_bytes(text.encode("latin-1"))
    with pytest.raises(GenerationError, match="CURRENT"):
        generation.current(tmp_path)
    assert generation.rollback(tmp_path).folder_name == _name_in_use(tmp_path) == "00000002-2"
    assert _newest(tmp_path) == ("00000002-2", True)
    (tmp_path / "CURRENT").write_bytes(text.encode("latin-1"))
    assert generation.resume(tmp_path).folder_name == _name_in_use(tmp_path) == "00000002-2"
    assert _newest(tmp_path) == ("00000002-2", False)


def test_rollback_goes_back_one_by_one_and_remembers_from_where(tmp_path: Path, publish: Publish) -> None:
    for commit in (1, 2, 3):
        publish(tmp_path, commit)
    assert generation.rollback(tmp_path).folder_name == _name_in_use(tmp_path) == "00000002-2"
    assert generation.rollback(tmp_path).folder_name == _name_in_use(tmp_path) == "00000001-1"
    assert _newest(tmp_path) == ("00000003-3", True)
    with pytest.raises(GenerationError, match=r"earlier than the one in use \(00000001-1\)"):
        generation.rollback(tmp_path)
    assert _name_in_use(tmp_path) == "00000001-1"


def test_rollback_passes_over_damaged_generations(tmp_path: Path, publish: Publish) -> None:
    for commit in (1, 2, 3):
        publish(tmp_path, commit)
    (tmp_path / "00000002-2" / "index.faiss").write_bytes(b"")
    assert generation.rollback(tmp_path).folder_name == _name_in_use(tmp_path) == "00000001-1"


def test_rollback_without_generations_says_so(tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="there are no generations"):
        generation.rollback(tmp_path / "none")
    with pytest.raises(GenerationError, match="no generation in"):
        generation.rollback(tmp_path)


def test_what_is_published_after_a_rollback_is_held_back_until_it_is_resumed(
    tmp_path: Path, publish: Publish
) -> None:
    for commit in (1, 2):
        publish(tmp_path, commit)
    generation.rollback(tmp_path)
    for commit in (3, 4):
        publish(tmp_path, commit)
        assert _name_in_use(tmp_path) == "00000001-1"
        assert _newest(tmp_path) == (f"0000000{commit}-{commit}", True)
    assert generation.resume(tmp_path).folder_name == _name_in_use(tmp_path) == "00000004-4"
    assert _newest(tmp_path) == ("00000004-4", False)
    publish(tmp_path, 5)
    assert _name_in_use(tmp_path) == "00000005-5"


def test_what_is_held_and_all_before_it_outlive_pruning(tmp_path: Path, publish: Publish) -> None:
    for commit in (1, 2, 3):
        publish(tmp_path, commit)
    generation.rollback(tmp_path)
    for commit in (4, 5, 6):
        publish(tmp_path, commit, keep=2)
    assert _names(tmp_path) == ["00000001-1", "00000002-2", "00000005-5", "00000006-6"]
    assert generation.rollback(tmp_path).folder_name == "00000001-1"
    publish(tmp_path, 7, keep=1)
    assert _names(tmp_path) == ["00000001-1", "00000007-7"]
    generation.resume(tmp_path)
    publish(tmp_path, 8, keep=1)
    assert _names(tmp_path) == ["00000008-8"]


def test_resume_passes_over_damaged_generations(tmp_path: Path, publish: Publish) -> None:
    for commit in (1, 2):
        publish(tmp_path, commit)
    generation.rollback(tmp_path)
    for commit in (3, 4):
        publish(tmp_path, commit)
    (tmp_path / "00000004-4" / "index.faiss").write_bytes(b"")
    assert generation.resume(tmp_path).folder_name == _name_in_use(tmp_path) == "00000003-3"


def test_without_a_whole_generation_resume_says_so_and_the_hold_stays(
    tmp_path: Path, publish: Publish
) -> None:
    with pytest.raises(GenerationError, match="there are no generations in"):
        generation.resume(tmp_path / "none")
    with pytest.raises(GenerationError, match="there are no generations yet"):
        generation.resume(tmp_path)
    for commit in (1, 2):
        publish(tmp_path, commit)
    generation.rollback(tmp_path)
    for name in ("00000001-1", "00000002-2"):
        (tmp_path / name / "index.faiss").write_bytes(b"")
    with pytest.raises(GenerationError, match=r"2-2/index\.faiss is damaged.*1-1/index\.faiss is damaged"):
        generation.resume(tmp_path)
    assert _newest(tmp_path) == ("00000002-2", True)
