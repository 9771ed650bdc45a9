"""The user's command over four hosts: the real launcher, pdsh and ssh, and what becomes of a run that loses a host."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain import checkpoint
from tests.cluster.conftest import HOSTS, Started
from tests.pretrain.test_run import assert_same_curves, curve

pytestmark = pytest.mark.cluster

STEPS = ("--steps", "40", "--save_every", "10")


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if "error: " in line]


def wait_for_checkpoint(run_dir: Path, started: Started) -> None:
    until = time.monotonic() + 120
    while checkpoint.newest(run_dir) is None:
        assert started.process.poll() is None, started.log.read_text()
        assert time.monotonic() < until, started.log.read_text()
        time.sleep(0.1)


def assert_nothing_runs(cluster, within: float = 10) -> None:
    """No rank, no worker and no launcher is left on any host."""
    until = time.monotonic() + within
    for host in HOSTS:
        while cluster.start(host, ["pgrep", "-f", "pretrain/main.py"], stdout=subprocess.DEVNULL).wait() == 0:
            assert time.monotonic() < until, cluster.run(host, ["pgrep", "-af", "pretrain/main.py"])
            time.sleep(0.2)


@pytest.fixture(scope="module")
def on_one_process(tmp_path_factory, pretrain, ds_config) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    pretrain(1, "--ds_config", str(ds_config(10)), "--out", str(out), *STEPS)
    return out


def test_four_hosts_draw_the_curve_of_one_process(hosts, launch, ds_config, tmp_path, on_one_process):
    started = launch(HOSTS, "--ds_config", str(ds_config(10)), "--out", str(tmp_path / "run"), *STEPS)
    output = started.end(within=300)
    assert started.process.returncode == 0, output
    assert "4: node1, node2, node3, node4" in output
    assert_same_curves(tmp_path / "run", on_one_process)
    assert_nothing_runs(hosts)


def test_a_host_that_is_cut_off_ends_the_run_and_three_go_on(
    hosts, launch, ds_config, tmp_path, on_one_process, monkeypatch
):
    # As many users have it: ssh does not see by itself that the other end is gone.
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-oServerAliveInterval=0")
    out = tmp_path / "run"
    arguments = ("--ds_config", str(ds_config(10)), "--out", str(out), *STEPS, "--timeout", "15")
    started = launch(HOSTS, *arguments)
    wait_for_checkpoint(out, started)
    hosts.cut("node3")
    output = started.end(within=90)
    assert started.process.returncode != 0
    assert len(errors(output)) == 1, output
    assert "error: rank 2 on node3: " in errors(output)[0]
    assert_nothing_runs(hosts, within=30)  # on the lost host either

    started = launch(["node1", "node2", "node4"], *arguments)
    output = started.end(within=300)
    assert started.process.returncode == 0, output
    assert "3: node1, node2, node4" in output
    assert int(re.search(r"resuming at step (\d+)", output)[1]) >= 10
    assert_same_curves(out, on_one_process)
    hosts.run("node1", [sys.executable, "pretrain/convert.py", str(out), str(tmp_path / "converted")])
    assert (tmp_path / "converted" / "genebert.json").is_file()


def test_a_host_that_cannot_be_reached_is_named(hosts, launch, ds_config, tmp_path):
    hosts.cut("node4")
    started = launch(HOSTS, "--ds_config", str(ds_config(10)), "--out", str(tmp_path / "run"), *STEPS)
    output = started.end(within=200)
    assert started.process.returncode != 0
    assert re.search(r"^node4: ssh: connect to host node4 port 22: ", output, re.MULTILINE)
    assert len(errors(output)) == 1, output
    assert re.search(r"error: rank 3 .*\bnode4\b", errors(output)[0])
    assert_nothing_runs(hosts)


def test_a_launcher_that_is_interrupted_leaves_a_checkpoint_and_no_process(hosts, launch, ds_config, tmp_path):
    arguments = ("--ds_config", str(ds_config(10)), "--steps", "5000", "--save_every", "10")
    started = launch(HOSTS, *arguments, "--out", str(tmp_path / "run"))
    wait_for_checkpoint(tmp_path / "run", started)
    hosts.run("node1", ["pkill", "-TERM", "-f", "bin/deepspeed"])
    started.end(within=60)
    assert_nothing_runs(hosts, within=40)
    saved = checkpoint.read_state(checkpoint.newest(tmp_path / "run"))["step"]
    assert saved == max(curve(tmp_path / "run"))


def test_tasks_of_srun_are_ranks(start, preset, shards, ds_config, tmp_path):
    """Their variables, that is: there is no Slurm here, they are set by hand."""
    command = [sys.executable, "pretrain/main.py", "--config", str(preset), "--shards", str(shards)]
    command += ["--ds_config", str(ds_config(10)), "--out", str(tmp_path / "run"), "--steps", "10"]
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    job |= {"SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    job |= {"GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    tasks = [
        start(host, command, **job, SLURM_PROCID=str(number), SLURM_NODEID=str(number))
        for number, host in enumerate(["node1", "node2"])
    ]
    output = "".join(task.end(within=200) for task in tasks)
    assert [task.process.returncode for task in tasks] == [0, 0], output
    assert "2: node1, node2" in output
    assert "10 steps done" in output
