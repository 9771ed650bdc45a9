import socket

import pytest


@pytest.fixture
def free_port():
    """A function that gives a TCP port of this machine that nobody listens on."""

    def port() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return listener.getsockname()[1]

    return port
