"""Generations on disk: one folder each, whole or not there at all, and which of them is in use.

Owns the folder `refresh.path`: generations `<number>-<commit>`, the file CURRENT that names the one in use, and a lock for writers.
Never builds or judges what it is given (`refresher.py`), and never reads the clock. A folder is complete before it gets
its name, and CURRENT is replaced in one step, so a crash anywhere leaves the generation in use as it was.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import msgpack
from pydantic import BaseModel, ConfigDict

from feature_store.errors import GenerationError
from index_refresher.checks import CheckFigures
from index_refresher.index import ItemIndex

FORMAT_VERSION = 1
FILES = ("index.faiss", "items.msgpack", "popular.msgpack", "towers.safetensors", "model.json")
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"  # as sha256sum writes it; the manifest holds the digests of all other files
CURRENT = "CURRENT"

_NAME = re.compile(r"(\d{8,})-(\d+)")
_SCRATCH_PREFIX = ".scratch-"


class FileDigest(BaseModel):
    """What a file must be, byte for byte."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a generation is: whose towers, how many items, how it did in its checks, and its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: int
    number: int
    commit: int
    watermark_ms: int
    latest_event_ms: int
    created_ms: int
    num_items: int
    index_kind: str
    checks: CheckFigures
    files: dict[str, FileDigest]

    @property
    def folder_name(self) -> str:
        """The name of the generation's folder."""
        return f"{self.number:08d}-{self.commit}"


class Popular(NamedTuple):
    """The most popular items, best first, and how popular each is."""

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]

    def encode(self) -> bytes:
        """Return the bytes of `popular.msgpack`."""
        return msgpack.packb((self.item_ids, self.scores))

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Return what `encode` wrote."""
        item_ids, scores = msgpack.unpackb(value, use_list=False)
        return cls(item_ids, scores)


class Generation(NamedTuple):
    """A verified generation in memory; nobody changes it."""

    manifest: Manifest
    index: ItemIndex
    popular: Popular
    towers: bytes
    model: str


class Draft(NamedTuple):
    """What is to be published, checked already."""

    commit: int
    watermark_ms: int
    latest_event_ms: int
    index: ItemIndex
    popular: Popular
    towers: bytes
    model: str
    checks: CheckFigures


def publish(path: Path, draft: Draft, created_ms: int, keep: int) -> Manifest:
    """Write a generation, make it the one in use, and delete all but the newest `keep`.

    All files and their folder are synced before the folder gets its name, and the name before CURRENT says it. Waits for another
    writer. What a crash left half written is removed here.

    Raises:
        GenerationError: the disk is full, or the folder may not be written.
    """
    with _writing(path):
        number = max((number for number, _ in map(_parse, _names(path))), default=0) + 1
        index, items = draft.index.encode()
        contents = dict(
            zip(FILES, (index, items, draft.popular.encode(), draft.towers, draft.model.encode()), strict=True)
        )
        manifest = _manifest(draft, number, created_ms, contents)
        text = manifest.model_dump_json(indent=2).encode()
        digest = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=path))
        scratch.chmod(0o755)  # mkdtemp's 0700 would hide it from a server that runs as another user
        for name, content in {**contents, MANIFEST: text, MANIFEST_DIGEST: digest}.items():
            _write_synced(scratch / name, content)
        _sync_folder(scratch)
        scratch.rename(path / manifest.folder_name)
        _sync_folder(path)
        _point(path, manifest.folder_name)
        _prune(path, keep)
    return manifest


def load(folder: Path, num_threads: int) -> Generation:
    """Read a generation, each byte compared with what was published; searches use this many threads.

    Raises:
        GenerationError: a file is missing or damaged; names it.
    """
    manifest, contents = _verified(folder)
    index, items, popular, towers, model = (contents[name] for name in FILES)
    try:
        parsed = ItemIndex.decode(index, items, num_threads)
        if (len(parsed), parsed.kind) != (manifest.num_items, manifest.index_kind):
            raise ValueError(f"{len(parsed)} items in a {parsed.kind} index")
        return Generation(manifest, parsed, Popular.decode(popular), towers, model.decode())
    except (ValueError, TypeError) as error:
        raise GenerationError(f"the generation {folder} is not what its {MANIFEST} says: {error}") from error


def verify(folder: Path) -> Manifest:
    """Return the manifest of a generation whose bytes are all as published, without making an index of them.

    Raises:
        GenerationError: a file is missing or damaged; names it.
    """
    return _verified(folder)[0]


def newest(path: Path) -> Path | None:
    """Return the folder of the generation with the highest number; after a rollback that is not the one in use."""
    names = _names(path)
    return path / names[-1] if names else None


def current(path: Path) -> Path | None:
    """Return the folder of the generation in use, None before the first.

    Raises:
        GenerationError: CURRENT does not name a generation that is there.
    """
    file = path / CURRENT
    try:
        name = file.read_bytes().decode(errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GenerationError(f"cannot read {file}: {error.strerror}") from error
    if not _NAME.fullmatch(name) or not (path / name).is_dir():
        raise GenerationError(f"{file} names {name[:80]!r}, which is no generation in {path}; run index-refresher rollback")
    return path / name


def rollback(path: Path) -> Manifest:
    """Go back to the newest whole generation before the one in use; where CURRENT is damaged, to the newest of all.

    The refresher makes no new generation of the same commit, so this lasts until the trainer commits again.

    Raises:
        GenerationError: there is no earlier generation, or all are damaged.
    """
    if not path.is_dir():
        raise GenerationError(f"there are no generations in {path}; set refresh.path, or run index-refresher once")
    with _writing(path):
        names = _names(path)
        try:
            used = current(path)
        except GenerationError:
            used = None
        earlier = [name for name in names if used is None or _parse(name) < _parse(used.name)]
        if not earlier:
            in_use = used.name if used else "none"
            raise GenerationError(f"no generation in {path} is earlier than the one in use ({in_use}); {len(names)} kept")
        manifest = _newest_whole(path, earlier)
        _point(path, manifest.folder_name)
    return manifest


def _newest_whole(path: Path, names: list[str]) -> Manifest:
    damage: list[str] = []
    for name in reversed(names):
        try:
            return verify(path / name)
        except GenerationError as error:
            damage.append(str(error))
    raise GenerationError("; ".join(damage))


def _manifest(draft: Draft, number: int, created_ms: int, contents: Mapping[str, bytes]) -> Manifest:
    digests = {
        name: FileDigest(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        number=number,
        commit=draft.commit,
        watermark_ms=draft.watermark_ms,
        latest_event_ms=draft.latest_event_ms,
        created_ms=created_ms,
        num_items=len(draft.index),
        index_kind=draft.index.kind,
        checks=draft.checks,
        files=digests,
    )


def _verified(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    text = _read(folder / MANIFEST)
    written = _read(folder / MANIFEST_DIGEST).decode(errors="replace")
    if written != f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n":
        raise GenerationError(f"{folder / MANIFEST} is damaged: its SHA-256 is not what {MANIFEST_DIGEST} says")
    try:
        version = json.loads(text).get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format {version}, this program reads {FORMAT_VERSION}")
        manifest = Manifest.model_validate_json(text)
    except ValueError as error:
        raise GenerationError(f"{folder / MANIFEST} does not parse: {error}") from error
    if manifest.folder_name != folder.name or set(manifest.files) != set(FILES):
        raise GenerationError(f"{folder / MANIFEST} describes {manifest.folder_name}, with files {sorted(manifest.files)}")
    contents = {}
    for name, expected in manifest.files.items():
        content = contents[name] = _read(folder / name)
        found = FileDigest(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        if found != expected:
            raise GenerationError(
                f"{folder / name} is damaged: {found.size_bytes} bytes with SHA-256 {found.sha256[:12]}…, published were "
                f"{expected.size_bytes} with {expected.sha256[:12]}…; the next refresh replaces it"
            )
    return manifest, contents


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise GenerationError(f"cannot read {file}: {error.strerror}; the next refresh replaces this generation") from error


def _parse(name: str) -> tuple[int, int]:
    number, commit = name.split("-")
    return int(number), int(commit)


def _names(path: Path) -> list[str]:
    """Return the names of the generations' folders, oldest first."""
    return sorted((entry.name for entry in path.iterdir() if _NAME.fullmatch(entry.name)), key=_parse) if path.is_dir() else []


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Keep other writers out; the lock ends with the process. Whoever holds it may remove all scratch: its maker is dead."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with (path / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for scratch in path.glob(f"{_SCRATCH_PREFIX}*"):
                shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
            yield
    except OSError as error:
        raise GenerationError(f"cannot write generations in {path}: {error}; the one in use stays") from error


def _point(path: Path, name: str) -> None:
    scratch = path / f"{_SCRATCH_PREFIX}{CURRENT}"
    _write_synced(scratch, f"{name}\n".encode())
    scratch.replace(path / CURRENT)
    _sync_folder(path)


def _prune(path: Path, keep: int) -> None:
    for name in _names(path)[:-keep]:
        scratch = path / f"{_SCRATCH_PREFIX}{name}"  # a crash must not leave half a generation under its name
        (path / name).rename(scratch)
        shutil.rmtree(scratch)


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
