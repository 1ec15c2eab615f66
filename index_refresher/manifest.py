"""The manifest of a generation: what it is, and the digest of every byte of it.

Owns the names of the files in a generation's folder and the comparison of what is read with what was
published: Faiss loads most damaged files without a word. Never writes, and never decides which generation is
in use.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from feature_store.errors import GenerationError
from index_refresher.checks import CheckFigures

FORMAT_VERSION = 4
FILES = ("index.faiss", "items.msgpack", "popular.msgpack", "towers.safetensors", "model.json")
MANIFEST = "manifest.json"
MANIFEST_DIGEST = (
    "manifest.json.sha256"  # as sha256sum writes it; the manifest holds the digests of all others
)


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
    store: str
    """Which store it was made of, as its readers tell."""
    commit: int
    watermark_ms: int
    latest_click_ms: int
    created_ms: int
    num_items: int
    num_item_changes: int
    """Of items, up to its commit: those after it make the delta."""
    popularity_total: float
    """The sum of its items' decayed counts: what the popularity of one is a share of."""
    index_kind: str
    checks: CheckFigures
    files: dict[str, FileDigest]

    @property
    def folder_name(self) -> str:
        """The name of the generation's folder."""
        return f"{self.number:08d}-{self.commit}"


def make_manifest(facts: Mapping[str, Any], checks: CheckFigures, contents: Mapping[str, bytes]) -> Manifest:
    """Return the manifest of these files; `facts` are its other fields."""
    digests = {name: _digest(content) for name, content in contents.items()}
    return Manifest(format_version=FORMAT_VERSION, checks=checks, files=digests, **facts)


def encode_manifest(manifest: Manifest) -> dict[str, bytes]:
    """Return the manifest's file and the file of its digest, by name."""
    text = manifest.model_dump_json(indent=2).encode()
    return {MANIFEST: text, MANIFEST_DIGEST: _digest_line(text)}


def verify(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Return a generation's manifest and files, by name, after comparing every byte with what was published.

    Raises:
        GenerationError: a file is missing or damaged; names it.
    """
    text = _read(folder / MANIFEST)
    if _read(folder / MANIFEST_DIGEST) != _digest_line(text):
        raise GenerationError(f"{folder / MANIFEST} is damaged: {MANIFEST_DIGEST} holds another SHA-256")
    try:
        version = json.loads(text).get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format {version}, this program reads {FORMAT_VERSION}: run index-refresher once, and "
                "index-refresher resume if a rollback holds"
            )
        manifest = Manifest.model_validate_json(text)
    except ValueError as error:
        raise GenerationError(f"{folder / MANIFEST} does not parse: {error}") from error
    if manifest.folder_name != folder.name or set(manifest.files) != set(FILES):
        raise GenerationError(
            f"{folder / MANIFEST} is that of {manifest.folder_name}, with files {sorted(manifest.files)}"
        )
    contents = {}
    for name, expected in manifest.files.items():
        content = contents[name] = _read(folder / name)
        found = _digest(content)
        if found != expected:
            raise GenerationError(
                f"{folder / name} is damaged: {found.size_bytes} bytes, SHA-256 {found.sha256[:8]}; there "
                f"should be {expected.size_bytes}, {expected.sha256[:8]}; the next refresh replaces it "
                "unless a rollback holds it"
            )
    return manifest, contents


def _digest(content: bytes) -> FileDigest:
    return FileDigest(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _digest_line(text: bytes) -> bytes:
    return f"{_digest(text).sha256}  {MANIFEST}\n".encode()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise GenerationError(
            f"cannot read {file}: {error.strerror}; the next refresh replaces this generation "
            "unless a rollback holds it"
        ) from error
