"""Four hosts, and the launcher on the first of them, set up as the README says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, missing
from tests.pretrain.conftest import deepspeed, ds_config, preset, pretrain, shards

__all__ = ["deepspeed", "ds_config", "preset", "pretrain", "shards"]

HOSTS = ["node1", "node2", "node3", "node4"]
ENVIRONMENT = "GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n"


@dataclass
class Started:
    """A command on a host, and the file that holds what it prints."""

    process: subprocess.Popen
    log: Path

    def end(self, within: float) -> str:
        """What it printed, once it has ended by itself; fails where it has not after `within` seconds."""
        try:
            self.process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it still runs after {within} s: {self.log.read_text()}")
        return self.log.read_text()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if problem := missing():
        pytest.skip(problem)
    hosts = Cluster(tmp_path_factory.mktemp("cluster") / "hosts", temporary=True)
    hosts.up(len(HOSTS))
    yield hosts
    hosts.down()


@pytest.fixture
def hosts(cluster) -> Iterator[Cluster]:
    """The hosts, all plugged in, with nothing left of the test before."""
    yield cluster
    for host in HOSTS:
        cluster.join(host)
    for host in HOSTS:
        for program in ("pdsh", "deepspeed.launcher.launch", "pretrain/main.py"):
            cluster.start(host, ["pkill", "-KILL", "-f", program]).wait()


@pytest.fixture
def start(hosts, tmp_path) -> Callable[..., Started]:
    """A function that starts a command on a host, with some variables."""

    def start(host: str, command: list[str], **variables: str) -> Started:
        log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
        with log.open("w") as file:
            environment = {**os.environ, **variables}
            return Started(hosts.start(host, command, env=environment, stdout=file, stderr=subprocess.STDOUT), log)

    return start


@pytest.fixture
def launch(start, tmp_path, preset, shards) -> Callable[..., Started]:
    """A function that starts `deepspeed --hostfile ... pretrain/main.py ...` on node1, over some hosts."""
    (tmp_path / ".deepspeed_env").write_text(ENVIRONMENT)

    def launch(names: list[str], *arguments: str) -> Started:
        hostfile = tmp_path / "hostfile"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in names))
        launcher = Path(sys.executable).with_name("deepspeed")
        command = [str(launcher), "--hostfile", str(hostfile), "--num_nodes", str(len(names)), "pretrain/main.py"]
        command += ["--config", str(preset), "--shards", str(shards), *arguments]
        return start("node1", command, HOME=str(tmp_path), DS_ACCELERATOR="cpu")

    return launch
