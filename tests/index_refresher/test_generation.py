"""Generations on disk: a damaged one is refused, a crash leaves the one in use."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_store.errors import GenerationError
from index_refresher import generation
from index_refresher.manifest import (
    FILES,
    FORMAT_VERSION,
    MANIFEST,
    MANIFEST_DIGEST,
    Manifest,
    encode_manifest,
    verify,
)

Publish = Callable[..., Manifest]

EVERY_FILE = [*FILES, MANIFEST, MANIFEST_DIGEST]


def _name_in_use(path: Path) -> str | None:
    used = generation.current(path)
    return used and used.folder.name


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def test_what_is_published_is_what_is_loaded(tmp_path: Path, publish: Publish) -> None:
    manifest = publish(tmp_path, commit=7, num_items=30)
    assert manifest.folder_name == _name_in_use(tmp_path) == "00000001-7"
    loaded = generation.load(tmp_path / "00000001-7", num_threads=1)
    assert loaded.manifest == manifest
    assert (manifest.commit, manifest.watermark_ms, manifest.latest_click_ms) == (7, 7000, 7500)
    assert (manifest.created_ms, manifest.num_items, manifest.index_kind) == (70_000, 30, "flat")
    assert loaded.popular.item_ids[:3] == ("i29", "i28", "i27")
    assert loaded.popular.scores[:3] == (29.0, 28.0, 27.0)
    assert (loaded.trained.towers, loaded.trained.store) == (b"towers of 7", "a store")
    assert len(loaded.item_index) == 30
    for name in FILES:
        content = (tmp_path / "00000001-7" / name).read_bytes()
        digest = manifest.files[name]
        assert (digest.size_bytes, digest.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_sha256sum_accepts_the_manifest_digest(tmp_path: Path, publish: Publish) -> None:
    publish(tmp_path)
    check = ["sha256sum", "--check", "--strict", MANIFEST_DIGEST]
    subprocess.run(check, cwd=tmp_path / "00000001-1", check=True, capture_output=True)


def test_there_is_no_generation_at_first(tmp_path: Path) -> None:
    assert generation.current(tmp_path / "none") is None
    assert generation.current(tmp_path) is None


def test_numbers_ascend_and_only_the_newest_are_kept(tmp_path: Path, publish: Publish) -> None:
    for commit in (5, 6, 6, 9):
        publish(tmp_path, commit, keep=2)
    assert _names(tmp_path) == ["00000003-6", "00000004-9"]
    assert _name_in_use(tmp_path) == "00000004-9"


@pytest.mark.parametrize("name", EVERY_FILE)
def test_every_flipped_bit_of_a_few_is_refused(tmp_path: Path, publish: Publish, name: str) -> None:
    publish(tmp_path)
    folder = tmp_path / "00000001-1"
    content = (folder / name).read_bytes()
    for bit in random.Random(name).sample(range(len(content) * 8), min(40, len(content) * 8)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(GenerationError, match=MANIFEST if name == MANIFEST_DIGEST else name):
            generation.load(folder, num_threads=1)
    (folder / name).write_bytes(content)
    generation.load(folder, num_threads=1)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "missing", "folder"])
def test_files_of_another_length_or_none_are_refused(
    tmp_path: Path, publish: Publish, name: str, damage: str
) -> None:
    publish(tmp_path)
    file = tmp_path / "00000001-1" / name
    content = file.read_bytes()
    if damage in ("missing", "folder"):
        file.unlink()
        if damage == "folder":
            file.mkdir()
    else:
        file.write_bytes({"cut": content[:-1], "empty": b"", "longer": content + b"\0"}[damage])
    with pytest.raises(GenerationError, match=MANIFEST if name == MANIFEST_DIGEST else name):
        generation.load(tmp_path / "00000001-1", num_threads=1)


def test_a_manifest_of_another_format_or_folder_is_refused(tmp_path: Path, publish: Publish) -> None:
    manifest = publish(tmp_path)
    folder = tmp_path / manifest.folder_name
    other = FORMAT_VERSION + 1
    for change, text in (
        ({"format_version": other}, f"format {other}"),
        ({"number": 5}, "that of 00000005-1"),
    ):
        for name, content in encode_manifest(manifest.model_copy(update=change)).items():
            (folder / name).write_bytes(content)
        with pytest.raises(GenerationError, match=text):
            verify(folder)


class Crash(BaseException):
    """Ends the process, as far as the code under test can tell."""


@pytest.mark.parametrize("held", [False, True])
def test_a_crash_at_any_step_leaves_a_whole_generation_in_use(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """Stop before each sync, rename and removal in turn: in use is the old or the new one, the held one where
    a rollback holds, and the next publish cleans up.
    """
    outcomes = []
    for crash_at in range(1, 1000):
        path = tmp_path / str(crash_at)
        for commit in (1, 2):
            publish(path, commit, keep=2)
        if held:
            generation.rollback(path)
        num_calls = 0

        def crashing(real: Callable[..., object], crash_at: int = crash_at) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal num_calls
                num_calls += 1
                if num_calls == crash_at:
                    raise Crash
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (os, "unlink")):
                patch.setattr(owner, name, crashing(getattr(owner, name)))
            try:
                publish(path, 3, keep=2)
                break
            except Crash:
                pass
        used = generation.current(path)
        assert used is not None
        assert used.held == held
        for name in _names(path):
            if not name.startswith("."):
                generation.load(path / name, num_threads=1)
        outcomes.append(used.folder.name)
        publish(path, 4, keep=2)
        assert len(_names(path)) == 2 + held
        assert _names(path)[0 if held else -1] == _name_in_use(path)
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == ({"00000001-1"} if held else {"00000002-2", "00000003-3"})


_PUBLISHER = """
import sys
from pathlib import Path
import numpy as np
from feature_store.configuration import RefreshSettings
from index_refresher import generation
from index_refresher.checks import CheckFigures
from index_refresher.index import ItemIndex
from index_refresher.contents import Draft, Popular, Trained

rng = np.random.default_rng(0)
vectors = rng.normal(size=(20_000, 16)).astype(np.float32)
index = ItemIndex.build([str(i) for i in range(20_000)], vectors, RefreshSettings())
figures = CheckFigures(spread=1.0, self_retrieval=1.0, recall=1.0)
popular, trained = Popular(("1",), (1.0,)), Trained(b"towers", "{}", "")
draft = Draft(1, 0, 0, index, popular, trained, figures)
while True:
    generation.publish(Path(sys.argv[1]), draft, 0, keep=2)
    print("published", flush=True)
"""


def test_kill_9_while_publishing_leaves_a_whole_generation_in_use(tmp_path: Path, publish: Publish) -> None:
    rng = random.Random(3)
    last = 0
    for _ in range(6):
        publisher = subprocess.Popen(
            [sys.executable, "-c", _PUBLISHER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert publisher.stdout is not None
        assert publisher.stdout.readline() == "published\n"
        time.sleep(rng.random() * 0.1)
        publisher.send_signal(signal.SIGKILL)
        publisher.wait()
        publisher.stdout.close()
        used = generation.current(tmp_path)
        assert used is not None
        loaded = generation.load(used.folder, num_threads=1)
        assert loaded.manifest.number > last
        last = loaded.manifest.number
    publish(tmp_path, keep=2)
    assert len(_names(tmp_path)) == 2
    assert [file.name for file in tmp_path.glob(".scratch-*")] == []


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, publish: Publish) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenerationError, match="cannot write generations in"):
        publish(tmp_path / "file")


def test_what_cannot_be_deleted_keeps_nobody_from_writing(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another user's folder, say."""

    def refuse(path: Path) -> None:
        raise PermissionError(f"not yours: {path.name}")

    for commit in (1, 2):
        publish(tmp_path, commit, keep=2)
    oldest = _names(tmp_path)[0]
    monkeypatch.setattr(generation.shutil, "rmtree", refuse)
    for commit in (3, 4):
        assert publish(tmp_path, commit, keep=2).folder_name == _name_in_use(tmp_path)
    assert f"cannot delete {tmp_path}/.scratch-{oldest}, do it by hand: not yours" in caplog.text
    generation.rollback(tmp_path)
    monkeypatch.undo()
    publish(tmp_path, 5, keep=2)
    assert list(tmp_path.glob(".scratch-*")) == []


def test_a_full_disk_is_left_as_it_was(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path)
    before = _names(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(GenerationError, match="No space left on device"):
        publish(tmp_path, 2)
    assert _names(tmp_path) == before
    assert list(tmp_path.glob(".scratch-*")) == []
