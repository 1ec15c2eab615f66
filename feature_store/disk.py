"""Folders and files with an eye to what may go wrong: power cuts, and places that cannot be written."""

import os
from pathlib import Path

from feature_store.errors import SettingsError


def sync_folder(folder: Path) -> None:
    """Make new and renamed entries of the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path, option: str) -> None:
    """Make the folder of a file that is to be written after long work; leave no file behind.

    Raises:
        SettingsError: it could not be written; names the option.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise SettingsError(f"{option}: cannot write {path}: {error.strerror}") from None
