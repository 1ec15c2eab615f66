"""Generations on disk: one folder each, whole or not there at all, and which of them is in use.

Owns the folder `refresh.path`: generations `<number>-<commit>`, the file CURRENT, and a lock for writers.
CURRENT names the generation in use and, from a rollback until it is resumed, in a second line the newest,
which is then held back. Never builds or judges what it is given (`refresher.py`), and never reads the clock.
A folder is complete before it gets its name, and CURRENT is replaced in one step, so a crash anywhere leaves
the generation in use, and the hold on it, as they were.
"""

import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from feature_store.disk import sync_folder
from feature_store.errors import GenerationError
from index_refresher.contents import Draft, Generation, Popular, Trained
from index_refresher.index import ItemIndex
from index_refresher.manifest import FILES, MANIFEST, Manifest, encode_manifest, make_manifest, verify

CURRENT = "CURRENT"

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{8,})-(\d+)")
_POINTER = re.compile(rf"({_NAME.pattern})\n(?:rolled back from ({_NAME.pattern})\n)?")
_SCRATCH_PREFIX = ".scratch-"


class Current(NamedTuple):
    """What CURRENT says. `newest` is the folder in use or, while a rollback holds that, the newest one."""

    folder: Path
    newest: Path
    held: bool


def publish(path: Path, draft: Draft, created_ms: int, keep: int) -> Manifest:
    """Write a generation, make it the one in use, and delete all but the newest `keep`.

    Where a rollback holds another in use, that one stays, and so do those before it: a second rollback needs
    them. All files and their folder are synced before the folder gets its name, and that before CURRENT says
    it. Waits for another writer. What a crash left half written is removed here.

    Raises:
        GenerationError: the disk is full, or the folder may not be written.
    """
    with _writing(path):
        used = _readable_current(path)
        held = used.folder.name if used and used.held else None
        index, items = draft.item_index.encode()
        trained = draft.trained
        written = (index, items, draft.popular.encode(), trained.towers, trained.model.encode())
        contents = dict(zip(FILES, written, strict=True))
        facts = {
            "number": max((number for number, _ in map(_parse, _names(path))), default=0) + 1,
            "store": trained.store,
            "commit": draft.commit,
            "watermark_ms": draft.watermark_ms,
            "latest_click_ms": draft.latest_click_ms,
            "created_ms": created_ms,
            "num_items": len(draft.item_index),
            "num_item_changes": draft.num_item_changes,
            "popularity_total": draft.popularity_total,
            "index_kind": draft.item_index.kind,
        }
        manifest = make_manifest(facts, draft.checks, contents)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=path))
        try:
            scratch.chmod(0o755)  # mkdtemp's 0700 would hide it from a server that runs as another user
            for name, content in {**contents, **encode_manifest(manifest)}.items():
                _write_synced(scratch / name, content)
            sync_folder(scratch)
            scratch.rename(path / manifest.folder_name)
        except OSError:
            _remove(scratch)  # a full disk may be the store's, too
            raise
        sync_folder(path)
        if held:
            _point(path, held, manifest.folder_name)
        else:
            _point(path, manifest.folder_name)
        for name in _names(path)[:-keep]:
            if not held or _parse(name) > _parse(held):
                _remove(path / name)
    return manifest


def load(folder: Path, num_threads: int) -> Generation:
    """Read a generation, each byte compared with what was published; searches use this many threads.

    Raises:
        GenerationError: a file is missing or damaged; names it.
    """
    manifest, contents = verify(folder)
    index, items, popular, towers, model = (contents[name] for name in FILES)
    try:
        item_index = ItemIndex.decode(index, items, num_threads)
        if (len(item_index), item_index.kind) != (manifest.num_items, manifest.index_kind):
            raise ValueError(f"{len(item_index)} items in a {item_index.kind} index")
        trained = Trained(towers, model.decode(), manifest.store)
        return Generation(manifest, item_index, Popular.decode(popular), trained)
    except (ValueError, TypeError) as error:
        raise GenerationError(f"the generation {folder} is not what its {MANIFEST} says: {error}") from error


def current(path: Path) -> Current | None:
    """Return which generation is in use, None before the first.

    Folders newer than `newest` may be there: a crash left them before CURRENT named them.

    Raises:
        GenerationError: CURRENT does not name a generation that is there.
    """
    file = path / CURRENT
    try:
        text = file.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GenerationError(f"cannot read {file}: {error.strerror}") from error
    matched = _POINTER.fullmatch(text)
    if matched is None or not (path / matched[1]).is_dir():
        raise GenerationError(
            f"{file} says {text[:80]!r}, which is no generation there; run index-refresher resume, or once"
        )
    return Current(path / matched[1], path / (matched[4] or matched[1]), matched[4] is not None)


def earlier(path: Path) -> list[Path]:
    """Return the generations before the one in use, the newest first; all if CURRENT is bad.

    Those after it are left out: they are held back, or a crash left them.

    Raises:
        GenerationError: the folder cannot be read.
    """
    used = _readable_current(path)
    try:
        names = _names(path)
    except OSError as error:
        raise GenerationError(f"cannot read {path}: {error.strerror}") from error
    return [path / name for name in reversed(names) if not used or _parse(name) < _parse(used.folder.name)]


def rollback(path: Path) -> Manifest:
    """Go back to the newest whole generation before the one in use, to the newest of all if CURRENT is bad,
    and hold it.

    The trainer commits all the time: were the next refresh put in use, the rollback would last for seconds.
    Once more goes one further back.

    Raises:
        GenerationError: there is no earlier generation, or all are damaged.
    """
    _refuse_missing(path)
    with _writing(path):
        used = _readable_current(path)
        folders = earlier(path)
        if not folders:
            name = used.folder.name if used else "none"
            raise GenerationError(f"no generation in {path} is earlier than the one in use ({name})")
        manifest = _newest_whole(folders)
        _point(path, manifest.folder_name, used.newest.name if used else folders[0].name)
    return manifest


def resume(path: Path) -> Manifest:
    """Put the newest whole generation in use, and let refreshes be put in use again.

    Raises:
        GenerationError: there is no generation, or all are damaged.
    """
    _refuse_missing(path)
    with _writing(path):
        manifest = _newest_whole([path / name for name in reversed(_names(path))])
        _point(path, manifest.folder_name)
    return manifest


def _refuse_missing(path: Path) -> None:
    if not path.is_dir():
        raise GenerationError(f"there are no generations in {path}; set refresh.path to where they are")


def _newest_whole(folders: list[Path]) -> Manifest:
    damage: list[str] = []
    for folder in folders:
        try:
            return verify(folder)[0]
        except GenerationError as error:
            damage.append(str(error))
    raise GenerationError("; ".join(damage) or "there are no generations yet; run index-refresher once")


def _readable_current(path: Path) -> Current | None:
    try:
        return current(path)
    except GenerationError:
        return None


def _parse(name: str) -> tuple[int, int]:
    number, commit = name.split("-")
    return int(number), int(commit)


def _names(path: Path) -> list[str]:
    """Return the names of the generations' folders, oldest first."""
    return sorted((entry.name for entry in path.iterdir() if _NAME.fullmatch(entry.name)), key=_parse)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Keep other writers out. The lock ends with its process: who holds it may remove what others left."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for scratch in path.glob(f"{_SCRATCH_PREFIX}*"):
                _remove(scratch)
            yield
    except OSError as error:
        raise GenerationError(f"cannot write generations in {path}: {error}; the one in use stays") from error


def _remove(entry: Path) -> None:
    """Delete what nobody needs. What stays (another user's, say) keeps nobody from writing."""
    try:
        if not entry.name.startswith(_SCRATCH_PREFIX):  # a crash must not leave half of it under its name
            entry = entry.rename(entry.with_name(_SCRATCH_PREFIX + entry.name))
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        log.warning("cannot delete %s, do it by hand: %s", entry, error)


def _point(path: Path, name: str, held_back: str | None = None) -> None:
    text = f"{name}\n" if held_back is None else f"{name}\nrolled back from {held_back}\n"
    scratch = path / f"{_SCRATCH_PREFIX}{CURRENT}"
    _write_synced(scratch, text.encode())
    scratch.replace(path / CURRENT)
    sync_folder(path)


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
