"""Files of a remote folder, behind any URL that fsspec reads: http, s3, gs, file, ...

Failures of a server or the network are met by trying again; what cannot be helped becomes one `InputError`.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from data_prep.errors import InputError, one_line

BLOCK = 8 << 20  # bytes
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
SECONDS_OF_SILENCE = 60  # after which a connection counts as lost

# Protocols whose library fsspec does not bring, and the package that does.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
PACKAGES |= {"sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "webdav": "webdav4"}

T = TypeVar("T")


def is_remote(location: Path | str) -> bool:
    """True for a URL, `file://` too; False for a path."""
    return "://" in str(location)


def url(location: str, name: str = "") -> str:
    """What messages call a file of a remote folder: its URL without a password, and without a query, often a key."""
    folder = re.sub(r"//[^/@:]*:[^/@]*@", "//", location.partition("?")[0].rstrip("/"))
    return f"{folder}/{name}" if name else folder


@contextmanager
def open_remote(location: str, name: str) -> Iterator[BinaryIO]:
    """A file of a remote folder, open to be read from its beginning to its end.

    Raises `InputError` for a protocol that cannot be read, and otherwise what the protocol's library raises.
    """
    import fsspec

    protocol = location.partition("://")[0].partition("::")[0]
    session, how = {}, {"block_size": BLOCK}
    if protocol in ("http", "https"):
        import aiohttp

        # No limit to the total time, which would cut large files off; proxies are the environment's.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SECONDS_OF_SILENCE)
        configured = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
        session = {"client_kwargs": {"timeout": timeout, "trust_env": True} | configured}
        # One request for the whole file; fsspec asks for the size first unless it is given one.
        how = {"block_size": 0, "size": 1}
    try:
        files, folder = fsspec.url_to_fs(location, **session)
    except ImportError as error:
        package = f"pip install {PACKAGES[protocol]}" if protocol in PACKAGES else without_key(error, location)
        raise InputError(f"{url(location)}: reading {protocol}:// needs another package: {package}") from error
    except ValueError as error:
        raise InputError(
            f"{url(location)}: {without_key(error, location)}; give a folder, or a URL such as https://, s3://, gs://, "
            "file://"
        ) from error
    folder, question_mark, query = folder.partition("?")
    with files.open(f"{folder.rstrip('/')}/{name}{question_mark}{query}", "rb", **how) as file:
        yield file


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """What is left of a file, at most BLOCK bytes at a time."""
    while block := file.read(BLOCK):
        yield block


def read_remote(location: str, name: str, attempts: int) -> bytes:
    """The content of a small file. Raises `InputError` and `FileNotFoundError` as `retried` does."""

    def read() -> bytes:
        with open_remote(location, name) as file:
            return b"".join(blocks(file))

    return retried(read, location, name, attempts)


def retried(read: Callable[[], T], location: str, name: str, attempts: int) -> T:
    """What `read` gives; it is called again, after longer and longer pauses, where a server or the network failed it.

    Raises `FileNotFoundError` where the server has no such file, and `InputError`, with the URL and the cause, where
    the last attempt fails, or the server refuses to give the file.
    """
    attempt = 1
    while True:
        try:
            return read()
        except (InputError, FileNotFoundError):
            raise
        except Exception as error:  # each protocol's library raises its own
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
            if attempt == attempts or refused or isinstance(error, PermissionError):
                tried = "" if attempt == 1 else f" in {attempt} attempts"
                raise InputError(
                    f"{url(location, name)}: could not be read{tried}: {without_key(error, location)}"
                ) from error
        time.sleep(PAUSE * 2 ** (attempt - 1))
        attempt += 1


def without_key(error: Exception, location: str) -> str:
    """An error in one line, without the key that `location` may hold."""
    query = location.partition("?")[2]
    text = one_line(error).replace(location, url(location))
    return text.replace(query, "...") if query else text
