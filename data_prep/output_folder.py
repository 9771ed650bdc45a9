"""An output folder appears whole or not at all: it is filled under another name and renamed at the end.

Long work can be resumed: what an interrupted run left under the other name is then handed to the next one that is made
from the same.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import InputError, UnfinishedError

MANIFEST = "manifest.json"
UNFINISHED = "run.json"  # of a folder that is filled in place, until its manifest is there
SCRATCH = "scratch"  # in an unfinished folder: what only resuming needs
_MADE_FROM = "made_from"  # in an unfinished folder: the fingerprint, as long as all that was done is there
_PATIENCE = 10  # seconds for the processes of a killed run to end
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems without them


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
    if out.exists():
        if _fingerprint_of(out / manifest) == made_from:
            return True
        if any(out.iterdir()):
            if not any((out / name).is_file() for name in (manifest, UNFINISHED)):
                raise InputError(f"{out}: holds files that are not of this program; choose another folder with --out")
            if not overwrite:
                raise InputError(f"{out}: holds other results; choose another folder with --out, or give --overwrite")
    if not _is_complete(out, made_from, manifest):
        return False
    with _locked(out):  # a run was killed between its last two steps
        if _is_complete(out, made_from, manifest):
            _publish(out)
    return _fingerprint_of(out / manifest) == made_from


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
    as it was left to the next run with this fingerprint. Its subfolder SCRATCH is for such a run alone. What writes its
    manifest must do so last.
    """
    partial = _partial(out)
    with _locked(out):
        before = _contents(out)
        try:
            _prepare(partial, resume)
            yield partial
            if _contents(out) != before:
                raise UnfinishedError(f"{out}: was changed by another program during this run; choose another --out")
            _publish(out)
        except BaseException as error:
            kept = ""
            if resume and (isinstance(error, UnfinishedError) or not isinstance(error, InputError)):
                kept = f"; what is done is kept in {partial}, and the same command goes on from there"
            elif partial.exists():
                _empty(partial)
                partial.rmdir()
            if isinstance(error, KeyboardInterrupt | UnfinishedError):
                raise type(error)(f"{error}{kept}") from error
            if isinstance(error, OSError) and (error.errno in _NO_ROOM or _lies_in(error.filename, (partial, out))):
                room = "make room, or " if error.errno in _NO_ROOM else ""
                raise UnfinishedError(
                    f"{out}: could not be written: {error.strerror}; {room}choose another --out{kept}"
                ) from error
            raise


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the right to write `out`, together with the processes that are forked meanwhile, as long as one lives."""
    path = out.with_name(f".{out.name}.lock")
    deadline = time.monotonic() + _PATIENCE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := _try_lock(path)) is None:
            if time.monotonic() > deadline:
                raise InputError(f"{out}: another run is writing it; wait for that one, or choose another --out")
            time.sleep(0.1)
    except OSError as error:
        raise InputError(f"{path}: cannot be made: {error.strerror}; choose another folder with --out") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, None where another process has it.

    Not a library's lock: those do not outlive, in forked processes, the process that took them.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    # Its last holder may have removed it, and another process made it anew, since it was opened.
    if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
        return lock
    os.close(lock)
    return None


def _contents(folder: Path) -> set[tuple[str, int]] | None:
    """Names and times of a folder's files; None where there is no folder."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.iterdir()} if folder.exists() else None


def _is_complete(out: Path, made_from: str, manifest: str) -> bool:
    return _fingerprint_of(_partial(out) / manifest) == made_from


def _prepare(partial: Path, resume: str | None) -> None:
    """Empty the folder of anything but work that is to be resumed."""
    partial.mkdir(exist_ok=True)
    made_from = partial / _MADE_FROM
    if resume and made_from.is_file() and made_from.read_text() == resume:
        return
    _empty(partial)
    if resume:
        (partial / SCRATCH).mkdir()
        made_from.with_suffix(".new").write_text(resume)
        made_from.with_suffix(".new").rename(made_from)


def _empty(partial: Path) -> None:
    """Remove what the folder holds, first what says that it is whole."""
    for name in (_MADE_FROM, MANIFEST):
        (partial / name).unlink(missing_ok=True)
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _publish(out: Path) -> None:
    partial = _partial(out)
    (partial / _MADE_FROM).unlink(missing_ok=True)
    shutil.rmtree(partial / SCRATCH, ignore_errors=True)
    if not out.exists():
        partial.rename(out)
        return
    replaced = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
    out.rename(replaced / out.name)
    try:
        partial.rename(out)
    except OSError:
        (replaced / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(replaced)


def _lies_in(path: str | None, folders: tuple[Path, ...]) -> bool:
    return path is not None and any(Path(path).is_relative_to(folder) for folder in folders)


def _fingerprint_of(manifest: Path) -> str | None:
    try:
        return json.loads(manifest.read_text()).get("fingerprint")
    except (FileNotFoundError, ValueError, AttributeError):
        return None
