"""Fixtures for the tests of all packages."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest


class Server:
    """Serves a folder over http, and fails as it is told.

    asked: how often for each file; status: by file, what to answer instead of it; cut: by file, how many more times it
    ends after half of its bytes; pause: seconds after each 4 kB; stalls: files of which no more than 4 kB ever come.
    """

    def __init__(self, folder: Path):
        self.asked, self.cut, self.status, self.pause, self.stalls = Counter(), Counter(), {}, 0.0, set()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.partition("?")[0].removeprefix("/shards/")
                server.asked[name] += 1
                if name in server.status or not (folder / name).is_file():
                    self.send_error(server.status.get(name, 404))
                    return
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if server.cut[name] > 0:
                    server.cut[name] -= 1
                    content = content[: len(content) // 2]
                for first in range(0, len(content), 4096):
                    self.wfile.write(content[first : first + 4096])
                    time.sleep(3600 if name in server.stalls else server.pause)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/shards"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    """A function that serves a folder over http, until the test ends."""
    with ExitStack() as servers:
        yield lambda folder: servers.enter_context(closing(Server(folder)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data that lies beside the checkout; a clone has none, and its tests skip."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data in {folder}, which is not part of the repository")
    return folder
