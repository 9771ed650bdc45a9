"""The hosts themselves: names, cables, an end that takes all with it and nothing else."""

import subprocess
import time

import psutil
import pytest

from tests.cluster.cluster import Cluster, ClusterError, missing

pytestmark = pytest.mark.cluster


def children(started: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(started.pid).children(recursive=True)


@pytest.fixture
def two_hosts(tmp_path):
    if problem := missing():
        pytest.skip(problem)
    cluster = Cluster(tmp_path / "hosts", temporary=True)
    cluster.up(2)
    yield cluster
    cluster.down()


def test_a_host_is_cut_off_and_comes_back(two_hosts):
    to_the_other = ["ssh", "-o", "ConnectTimeout=2", "node2", "hostname"]
    assert two_hosts.run("node1", to_the_other) == "node2\n"
    two_hosts.cut("node2")
    with pytest.raises(ClusterError, match="node2"):
        two_hosts.run("node1", to_the_other)
    assert two_hosts.run("node2", ["hostname"]) == "node2\n"
    two_hosts.join("node2")
    assert two_hosts.run("node1", to_the_other) == "node2\n"


def test_a_host_sees_its_own_processes_alone(two_hosts):
    on_the_second = two_hosts.start("node2", ["sleep", "1000"])
    assert two_hosts.start("node1", ["pkill", "-x", "sleep"]).wait() == 1
    assert on_the_second.poll() is None


def test_down_ends_all_that_runs_on_the_hosts_and_nothing_else(two_hosts):
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        on_a_host = two_hosts.start("node2", ["sh", "-c", "sleep 1000 & wait"])
        until = time.monotonic() + 10
        while not (asleep := [process for process in children(on_a_host) if process.name() == "sleep"]):
            assert time.monotonic() < until
            time.sleep(0.05)
        two_hosts.down()
        assert on_a_host.wait(10) != 0
        assert psutil.wait_procs(asleep, timeout=10)[1] == []
        assert bystander.poll() is None
        bystander.kill()
    with pytest.raises(ClusterError, match="node1 is not up"):
        two_hosts.run("node1", ["true"])


def test_a_folder_holds_one_cluster(two_hosts):
    with pytest.raises(ClusterError, match="a cluster is up; end it by"):
        Cluster(two_hosts.folder).up(1)
    assert two_hosts.run("node2", ["hostname"]) == "node2\n"
