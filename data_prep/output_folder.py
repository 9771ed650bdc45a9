"""An output folder appears whole or not at all: it is filled under another name and renamed at the end.

Long work can be resumed: what an interrupted run left under the other name is then handed to the next one that is made
from the same.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.errors import InputError, UnfinishedError

MANIFEST = "manifest.json"
UNFINISHED = "run.json"  # of a folder that is filled in place, until its manifest is there
SCRATCH = "scratch"  # in an unfinished folder: what only resuming needs
_MADE_FROM = "made_from"  # in SCRATCH: the fingerprint
_LOCK = "lock"
_PATIENCE = 10  # seconds for the processes of a killed run to end


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
    if _fingerprint_of(_partial(out) / manifest) == made_from:  # a run was killed between its last two steps
        _publish(out)
        return True
    return False


def check_writable(out: Path) -> None:
    """Raise `InputError` where the folder `out` cannot be made or written to."""
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = "not writable" if nearest.is_dir() else "a file"
        raise InputError(f"{out}: {nearest} is {reason}; choose another folder with --out")


@contextmanager
def output_folder(out: Path, resume: str | None = None) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends well, and is removed when it does not.

    With `resume`, a fingerprint, the folder stays where the run was stopped by anything but its input, and comes back
    as it was left to the next run with this fingerprint. Its subfolder SCRATCH is for such a run alone.
    """
    partial = _partial(out)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(partial / _LOCK)
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise InputError(f"{out}: another run is writing it; wait for that one, or choose another --out") from error
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}; choose another folder with --out") from error
    try:
        _prepare(partial, resume)
        yield partial
        _publish(out)
    except OSError as error:
        here = str(error.filename or "").startswith((str(partial), str(out)))
        if not here and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _clear(partial)
            raise
        kept = _keep_or_clear(partial, resume)
        raise UnfinishedError(
            f"{out}: could not be written: {error.strerror}; make room, or choose another --out{kept}"
        ) from error
    except (KeyboardInterrupt, UnfinishedError) as error:
        raise type(error)(f"{error}{_keep_or_clear(partial, resume)}") from error
    except BaseException:
        _clear(partial)
        raise
    finally:
        lock.release()


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _prepare(partial: Path, resume: str | None) -> None:
    """Empty the folder of anything but work that is to be resumed."""
    made_from = partial / SCRATCH / _MADE_FROM
    if resume and made_from.is_file() and made_from.read_text() == resume:
        return
    for path in partial.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if resume:
        made_from.parent.mkdir()
        made_from.write_text(resume)


def _publish(out: Path) -> None:
    partial = _partial(out)
    shutil.rmtree(partial / SCRATCH, ignore_errors=True)
    (partial / _LOCK).unlink(missing_ok=True)
    if out.exists():
        replaced = out.with_name(out.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced)
    else:
        partial.rename(out)


def _keep_or_clear(partial: Path, resume: str | None) -> str:
    """Words on what is left there."""
    if resume:
        return f"; what is done is kept in {partial}, and the same command goes on from there"
    _clear(partial)
    return ""


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)


def _fingerprint_of(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text()).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
