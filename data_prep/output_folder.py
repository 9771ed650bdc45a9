"""An output folder appears whole or not at all: it is filled under another name and renamed at the end."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError

MANIFEST = "manifest.json"


def fingerprint(**inputs) -> str:
    """Hexadecimal sha256 of what an output is a function of: arguments and the sha256 of each input file."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def is_up_to_date(out: Path, made_from: str, overwrite: bool, manifest: str = MANIFEST) -> bool:
    """True if `out` already holds what `made_from` (a fingerprint) gives, by its `manifest`; it is to be used as it is.

    Raises `InputError` where `out` holds anything else and `overwrite` is off.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise InputError(f"{out}: is a file; choose another folder with --out")
    if _fingerprint_of(out / manifest) == made_from:
        return True
    if any(out.iterdir()) and not overwrite:
        raise InputError(f"{out}: holds other files; choose another folder with --out, or replace it with --overwrite")
    return False


@contextmanager
def output_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and is removed when it does not."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}; choose another folder with --out") from error
    try:
        yield partial
        if out.exists():
            replaced = out.with_name(out.name + ".replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            out.rename(replaced)
            partial.rename(out)
            shutil.rmtree(replaced)
        else:
            partial.rename(out)
    except OSError as error:
        raise InputError(f"{out}: could not be written: {error.strerror} ({error.filename})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint_of(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text()).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
