"""The hosts of a run, asked by processes that DeepSpeed's own host-side launcher started."""

import base64
import json
import subprocess
import sys

import pytest

from pretrain import hosts

WORLD = base64.urlsafe_b64encode(json.dumps({"gpu7": [0, 1], "gpu9": [0]}).encode()).decode()


@pytest.fixture
def on_first_host(tmp_path):
    """A function that runs a script as the two ranks of the first host, and gives what they print."""

    def run(script: str) -> list[str]:
        path = tmp_path / "script.py"
        path.write_text(f"import os\nfrom pretrain import hosts\n{script}\n")
        launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={WORLD}", "--node_rank=0"]
        launcher += ["--master_addr=gpu7", "--master_port=29712", "--quiet", "--no_local_rank", str(path)]
        return subprocess.run(launcher, check=True, capture_output=True, text=True).stdout.splitlines()

    return run


def test_each_rank_knows_the_hosts_of_all(on_first_host):
    # In one piece: both ranks write to the same pipe.
    output = on_first_host("os.write(1, (os.environ['RANK'] + f' {hosts.of_ranks()}').encode() + b'\\n')")
    assert set(output) >= {f"{rank} ['gpu7', 'gpu7', 'gpu9']" for rank in (0, 1)}


def test_a_process_of_no_launcher_has_no_hosts():
    assert hosts.of_ranks() is None
    hosts.hang_up({0, 1, 2})


def test_nor_has_one_without_a_parent(monkeypatch):
    monkeypatch.setattr("psutil.Process.parent", lambda _: None)
    assert hosts.of_ranks() is None


@pytest.fixture
def connection():
    """A function that starts a process that looks like pdsh's ssh to a host of a run."""
    started = []

    def start(node_rank: int, port: int, name: str = "ssh") -> subprocess.Popen:
        remote = f"cd /x; python -m deepspeed.launcher.launch --world_info={WORLD} --node_rank={node_rank}"
        remote += f" --master_addr=gpu7 --master_port={port} pretrain/main.py"
        waiting = [name, "-c", "import time; time.sleep(300)", "gpu", remote]
        started.append(subprocess.Popen(waiting, executable=sys.executable))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_connection_to_a_lost_host_is_ended_and_no_other(on_first_host, connection):
    lost, others = connection(1, 29712), [connection(0, 29712), connection(1, 29713), connection(1, 29712, "other")]
    on_first_host("hosts.hang_up({2})")
    assert lost.wait(10) == -15
    assert [process.poll() for process in others] == [None] * 3


@pytest.mark.slow
def test_a_host_is_lost_with_all_of_its_ranks(on_first_host, connection):
    first = connection(0, 29712)
    on_first_host("hosts.hang_up({1})")
    assert first.poll() is None
    on_first_host("hosts.hang_up({0, 1})")
    assert first.wait(10) == -15
