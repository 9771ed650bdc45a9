"""Ranks from the variables that `srun` sets, in the forms that Slurm's manual gives."""

import pytest

from data_prep.errors import InputError
from pretrain.slurm import first_host, from_slurm, tasks_by_host

# The fourth of 6 tasks: two on gpu08, three on gpu09, one on gpu10.
TASK = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[08-10]",
    "SLURM_JOB_NODELIST": "gpu[07-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,3,1",
}


def test_a_task_is_a_rank_of_its_step():
    assert from_slurm(TASK) == {
        "RANK": "3",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu08",
        "MASTER_PORT": "24567",
    }


def test_what_the_user_sets_stays():
    ranks = from_slurm(TASK | {"MASTER_ADDR": "10.0.0.8", "MASTER_PORT": "29500"})
    assert (ranks["MASTER_ADDR"], ranks["MASTER_PORT"]) == ("10.0.0.8", "29500")


@pytest.mark.parametrize(
    ("visible", "local"), [("0", ("0", "1")), ("GPU-8a4b", ("0", "1")), ("0,1,2", ("1", "3")), ("", ("1", "3"))]
)
def test_a_task_that_sees_one_gpu_takes_it(visible, local):
    ranks = from_slurm(TASK | {"CUDA_VISIBLE_DEVICES": visible})
    assert (ranks["LOCAL_RANK"], ranks["LOCAL_WORLD_SIZE"]) == local


def test_steps_of_a_job_do_not_meet():
    ports = {from_slurm(TASK | {"SLURM_STEP_ID": str(step)})["MASTER_PORT"] for step in range(4)}
    assert len(ports) == 4
    assert all(10_000 <= int(port) < 30_000 for port in ports)


def test_a_task_whose_host_has_no_number_of_tasks_is_refused():
    known = {name: value for name, value in TASK.items() if "TASKS_PER_NODE" not in name}
    with pytest.raises(InputError, match="SLURM_NODEID is 1, but SLURM_STEP_TASKS_PER_NODE has no such host"):
        from_slurm(known)


@pytest.mark.parametrize("alone", [{}, {"SLURM_NTASKS": "1"}, TASK | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_single_process_is_no_task_of_several(alone):
    assert from_slurm(alone) == {}


def test_a_process_outside_srun_is_refused():
    with pytest.raises(InputError, match="made room for 4 tasks, and this process is none: start it by srun"):
        from_slurm({"SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "gpu[1-2]"})


def test_tasks_without_a_list_of_hosts_ask_for_one():
    with pytest.raises(InputError, match="name the host of the first task as MASTER_ADDR"):
        from_slurm({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[007-010,12],login1", "gpu007"),
        ("gpu[3,5]", "gpu3"),
        ("rack[2-3]node[01-16]", "rack2node01"),
        ("a-1.example.org,b-[1-2]", "a-1.example.org"),
        ("r[1-2]-ib,x", "r1-ib"),
    ],
)
def test_the_first_host_of_a_list_in_short_form(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("tasks", "expected"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("8(x2),4", [8, 8, 4]), ("1,2(x2)", [1, 2, 2])]
)
def test_tasks_of_each_host(tasks, expected):
    assert tasks_by_host(tasks) == expected
