"""An output folder appears whole or not at all: it is filled under another name and renamed at the end."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError

MANIFEST = "manifest.json"
UNFINISHED = "run.json"  # of a folder that is filled in place, until its manifest is there


def fingerprint(**inputs) -> str:
    """Hexadecimal sha256 of what an output is a function of: arguments and the sha256 of each input file."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def is_up_to_date(
    out: Path, made_from: str, overwrite: bool, inputs: Iterable[Path | str] = (), manifest: str = MANIFEST
) -> bool:
    """True if `out` already holds what `made_from` (a fingerprint) gives, by its `manifest`; it is to be used as it is.

    Raises `InputError` where `out` cannot be written, lies over one of the `inputs`, or holds anything else: unless
    `overwrite` is on and a manifest shows that a program of ours wrote it.
    """
    check_writable(out)
    for path in inputs:
        if out.resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
            raise InputError(f"{out}: holds the input {path}; choose another folder with --out")
    if not out.exists():
        return False
    if _fingerprint_of(out / manifest) == made_from:
        return True
    if any(out.iterdir()):
        if not any((out / name).is_file() for name in (manifest, UNFINISHED)):
            raise InputError(f"{out}: holds files that are not of this program; choose another folder with --out")
        if not overwrite:
            raise InputError(f"{out}: holds other results; choose another folder with --out, or give --overwrite")
    return False


def check_writable(out: Path) -> None:
    """Raise `InputError` where the folder `out` cannot be made or written to."""
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "not writable" if nearest.is_dir() else "a file"
        raise InputError(f"{out}: {nearest} is {reason}; choose another folder with --out")


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
        here = str(error.filename or "").startswith((str(partial), str(out)))
        if not here and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{out}: could not be written: {error.strerror}; make room, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint_of(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text()).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
