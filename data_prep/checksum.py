"""Checksums of files."""

import hashlib
from pathlib import Path

from data_prep.errors import InputError


def sha256_of_file(path: Path | str) -> str:
    """Hexadecimal sha256 of a file's bytes, as `sha256sum` prints it. Raises `InputError` where we may not read it."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
