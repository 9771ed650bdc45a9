"""What ends one rank ends all of them, soon, and with one line: real processes, without PyTorch."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # each starts three processes
HOST = socket.gethostname()
TIMEOUT = 2.0
SOON = 10  # seconds, on a busy machine, too; what is printed tells a death from a silence

# A rank: meets the others, does what it is told, and then stays, as one in a collective does, until it is ended.
RANK = """
import json, os, socket, sys, time
from pathlib import Path
from pretrain.heartbeat import Fault, Member, Monitor

rank, world, timeout, to_join = int(sys.argv[1]), 3, float(sys.argv[2]), float(sys.argv[3])
folder, do = Path(sys.argv[4]), sys.argv[5]
if rank == 0:
    heart = Monitor(world, timeout, to_join, ["one", "one", "two"])
    (folder / "partial").write_text(json.dumps({"port": heart.port, "token": heart.token}))
    (folder / "partial").rename(folder / "monitor")
else:
    while not (folder / "monitor").exists():
        time.sleep(0.02)
    monitor = json.loads((folder / "monitor").read_text())
    connection = socket.create_connection(("127.0.0.1", monitor["port"]))
    heart = Member(connection, rank, monitor["token"], timeout, speaks=rank == 1)
heart.wait_for_all()
heart.hint = "; go on"
(folder / f"{rank}").touch()
exec(do)
time.sleep(60)
"""


class Ranks:
    """Three ranks, of which some are told what to do once all have met."""

    def __init__(self, folder: Path, only: tuple[int, ...] = (0, 1, 2), to_join: float = 20, **told: str):
        self.folder, self.started = folder, time.monotonic()
        self.processes = {
            rank: subprocess.Popen(
                [
                    *(sys.executable, "-c", RANK, str(rank), str(TIMEOUT), str(to_join), str(folder)),
                    told.get(f"rank{rank}", ""),
                ],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in only
        }

    def have_met(self) -> "Ranks":
        while not all((self.folder / str(rank)).exists() for rank in self.processes):
            assert time.monotonic() < self.started + 20
            time.sleep(0.02)
        self.started = time.monotonic()
        return self

    def monitor(self) -> dict:
        """Port and token, once it is there."""
        while not (self.folder / "monitor").exists():
            assert time.monotonic() < self.started + 20
            time.sleep(0.02)
        return json.loads((self.folder / "monitor").read_text())

    def signal(self, rank: int, number: int) -> None:
        self.processes[rank].send_signal(number)

    def ended(self, *besides: int) -> tuple[str, set[int], float]:
        """What they printed, their exit codes and the seconds it took, all but those named."""
        others = [process for rank, process in self.processes.items() if rank not in besides]
        printed = "".join(process.communicate(timeout=20)[1] for process in others)
        return printed, {process.returncode for process in others}, time.monotonic() - self.started


@pytest.fixture
def ranks(tmp_path) -> Iterator[Callable[..., Ranks]]:
    made: list[Ranks] = []

    def make(**options) -> Ranks:
        made.append(Ranks(tmp_path, **options))
        return made[-1]

    yield make
    for process in (process for one in made for process in one.processes.values()):
        process.kill()
        process.communicate()


def test_ranks_that_leave_end_without_a_word(ranks):
    printed, codes, _ = ranks(**dict.fromkeys(("rank0", "rank1", "rank2"), "heart.leave(); sys.exit()")).ended()
    assert (printed, codes) == ("", {0})


def test_rank_0_stays_until_all_have_left(ranks):
    leaves = "heart.leave(); (folder / 'left').touch(); sys.exit()"
    late = "time.sleep(0.5); assert not (folder / 'left').exists(); heart.leave(); sys.exit()"
    printed, codes, _ = ranks(rank0=leaves, rank1="heart.leave(); sys.exit()", rank2=late).ended()
    assert (printed, codes) == ("", {0})


@pytest.mark.parametrize("killed", [1, 2])
def test_a_rank_that_is_killed_ends_all_at_once(ranks, killed):
    three = ranks().have_met()
    three.signal(killed, signal.SIGKILL)
    printed, codes, seconds = three.ended(killed)
    assert printed.startswith(f"error: rank {killed} on {HOST}: its process has died")
    assert printed.endswith("; go on\n")
    assert printed.count("\n") == 1
    assert codes == {1}
    assert seconds < SOON


def test_rank_0_killed_is_named_by_one_of_the_others(ranks):
    three = ranks().have_met()
    three.signal(0, signal.SIGKILL)
    printed, codes, seconds = three.ended(0)
    assert printed.startswith(f"error: rank 0 on {HOST}: its process has died")
    assert printed.count("\n") == 1
    assert codes == {1}
    assert seconds < SOON


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_rank_that_falls_silent_is_given_up_after_the_timeout(ranks, stopped):
    three = ranks().have_met()
    with socket.create_connection(("127.0.0.1", three.monitor()["port"])):  # of a stranger, who says nothing
        three.signal(stopped, signal.SIGSTOP)
        printed, codes, seconds = three.ended(stopped)
    assert printed.startswith(f"error: rank {stopped} on {HOST}: not heard of for 2 s")
    assert printed.count("\n") == 1
    assert codes == {1}
    assert TIMEOUT - 1 < seconds < SOON


def test_a_rank_that_does_not_come_to_the_end_is_named(ranks):
    leave = "heart.leave(); sys.exit()"
    printed, codes, _ = ranks(rank0=leave, rank1="time.sleep(20)", rank2=leave).ended(2)
    assert printed == f"error: rank 1 on {HOST}: not at the end 2 s after rank 0; go on\n"
    assert codes == {1}


def test_a_pause_shorter_than_the_timeout_ends_nothing(ranks):
    leave = "time.sleep(3); heart.leave(); sys.exit()"
    three = ranks(rank0=leave, rank1=leave, rank2=leave).have_met()
    for rank in (0, 2):
        three.signal(rank, signal.SIGSTOP)
        time.sleep(TIMEOUT / 2)
        three.signal(rank, signal.SIGCONT)
    assert three.ended()[:2] == ("", {0})


def test_a_killed_rank_is_missed_though_a_process_that_it_forked_lives_on(ranks):
    three = ranks(rank2="os.fork() or (time.sleep(4), os._exit(0))").have_met()
    time.sleep(0.2)
    three.signal(2, signal.SIGKILL)
    printed, codes, seconds = three.ended(2)
    assert "rank 2" in printed
    assert "died" in printed
    assert codes == {1}
    assert seconds < SOON


@pytest.mark.parametrize("failing", [0, 2])
def test_a_fault_of_one_rank_is_told_with_its_name_and_ends_all_with_its_code(ranks, failing):
    printed, codes, _ = ranks(**{f"rank{failing}": "heart.fail(Fault('no such shard', 2))"}).ended()
    assert printed == f"error: rank {failing} on {HOST}: no such shard; go on\n"
    assert codes == {2}


def test_a_fault_of_all_ranks_is_no_rank_s_own(ranks):
    fails = "heart.fail(Fault('no such shard', 2))"
    printed, codes, _ = ranks(rank0=fails, rank1=fails, rank2=fails).ended()
    assert (printed, codes) == ("error: no such shard; go on\n", {2})


def test_a_bug_is_shown_once_with_its_trace(ranks):
    fails = "heart.fail(Fault('ValueError: x', trace='Traceback\\n  line\\n'))"
    printed, codes, _ = ranks(rank1=fails, rank2=fails).ended()
    assert (printed, codes) == ("Traceback\n  line\nerror: ValueError: x; go on\n", {1})


def test_a_broken_collective_waits_for_the_fault_that_broke_it(ranks):
    broken = "heart.fail(Fault('closed by peer', follows=True))"
    printed, codes, _ = ranks(rank0=broken, rank1="time.sleep(1); heart.fail(Fault('disk full'))", rank2=broken).ended()
    assert (printed, codes) == (f"error: rank 1 on {HOST}: disk full; go on\n", {1})


def test_a_broken_collective_is_told_where_nothing_else_is(ranks):
    printed, codes, _ = ranks(rank2="heart.fail(Fault('closed by peer', follows=True))").ended()
    assert (printed, codes) == (f"error: rank 2 on {HOST}: closed by peer; go on\n", {1})


def test_ranks_that_do_not_come_are_named_with_their_host(ranks):
    two = ranks(only=(0, 1), to_join=2)
    port_of_monitor = two.monitor()["port"]
    printed, codes, seconds = two.ended()
    assert printed == (
        f"error: rank 2 on two did not come to port {port_of_monitor} of {HOST} within 2 s; 2 of 3 ranks did; "
        "GENEBERT_SECONDS_TO_JOIN gives slow storage more time\n"
    )
    assert codes == {1}
    assert seconds < SOON + 5


def test_a_job_that_is_suspended_as_a_whole_goes_on(ranks):
    leave = "time.sleep(1); heart.leave(); sys.exit()"
    three = ranks(rank0=leave, rank1=leave, rank2=leave).have_met()
    for number, pause in ((signal.SIGSTOP, TIMEOUT + 1), (signal.SIGCONT, 0)):
        for rank in (0, 1, 2):
            three.signal(rank, number)
        time.sleep(pause)
    assert three.ended()[:2] == ("", {0})


def test_a_stranger_who_says_nothing_is_hung_up_on(ranks):
    leave = "time.sleep(2); heart.leave(); sys.exit()"
    early = "import pretrain.heartbeat; pretrain.heartbeat.TO_SAY_WHO = 0.5;" + leave
    three = ranks(rank0=early, rank1=leave, rank2=leave).have_met()
    with socket.create_connection(("127.0.0.1", three.monitor()["port"]), timeout=5) as connection:
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began < 1.8
    assert three.ended()[:2] == ("", {0})


@pytest.mark.parametrize("seconds", [1, 60])
def test_what_is_to_be_done_before_a_fault_ends_the_run_is_done_within_a_limit(ranks, tmp_path, seconds):
    limit = "import pretrain.heartbeat; pretrain.heartbeat.FOR_THE_RECORD = 2"
    record = f"lambda: (time.sleep({seconds}), (folder / 'recorded').touch())"
    printed, codes, _ = ranks(
        rank0=f"{limit}; heart.before_failing = {record}", rank2="heart.fail(Fault('disk full'))"
    ).ended()
    assert (printed, codes) == (f"error: rank 2 on {HOST}: disk full; go on\n", {1})
    assert (tmp_path / "recorded").exists() == (seconds == 1)


def test_others_who_knock_are_not_heard(ranks):
    leave = "time.sleep(2); heart.leave(); sys.exit()"
    three = ranks(rank0=leave, rank1=leave, rank2=leave).have_met()
    monitor = three.monitor()
    of_another_run = [{"token": token, "rank": 1, "host": "x"} for token in ("?", monitor["token"])]
    fault = {"fault": {"text": "x"}}
    for messages in (
        "GET / HTTP/1.0\r\n\r\n",
        "3\n",
        "",
        *(f"{json.dumps(one)}\n" for one in (fault, *of_another_run)),
    ):
        with socket.create_connection(("127.0.0.1", monitor["port"]), timeout=5) as connection:
            connection.sendall(messages.encode())
    endless = socket.create_connection(("127.0.0.1", monitor["port"]), timeout=5)
    with endless, pytest.raises(ConnectionError):
        endless.sendall(b"x" * (1 << 26))
    assert three.ended()[:2] == ("", {0})
