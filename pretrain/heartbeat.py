"""Signs of life between ranks, and one end for all of them where one is lost or fails.

Rank 0 runs a monitor; each other rank keeps a connection to it and sends a beat every second or so. A process that dies
breaks its connection, which is seen at once; one that is stopped or cut off falls silent, which is seen after
`timeout`. A rank that fails says why. The monitor then prints one line, with the rank and its host, and every process
ends: from a thread of its own, as the main one may sit in a collective that no other rank will ever join.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import NoReturn

from pretrain import hosts

POLL = 0.1  # seconds
FOR_THE_SAME = 0.5  # seconds that other ranks have to say that they failed in the same way
FOR_THE_CAUSE = 5.0  # seconds in which the cause must show where all that is known is a broken collective
FOR_THE_WORD = 2.0  # seconds that the monitor stays to see the others end
FOR_THE_RECORD = 12.0  # seconds that it stays at most until what is to be done before has been done
MOST_UNREAD, TO_SAY_WHO = 1 << 16, 20.0  # bytes and seconds after which one who has not said its rank is hung up on

FAILED, INTERRUPTED, TERMINATED = 1, 128 + signal.SIGINT, 128 + signal.SIGTERM


@dataclass(frozen=True)
class Fault:
    """Why a rank fails. trace: of a bug, else empty; follows: another rank's fault may be behind it."""

    text: str
    code: int = FAILED
    trace: str = ""
    follows: bool = False

    def line(self, where: str = "", hint: str = "") -> str:
        """What the user reads. where: the rank, where the fault is its own; hint: how to go on."""
        return f"{'' if self.code in (INTERRUPTED, TERMINATED) else 'error: '}{where}{self.text}{hint}"


@dataclass
class Peer:
    """A rank as the monitor knows it."""

    connection: socket.socket
    rank: int | None = None
    host: str = ""
    since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    unread: bytes = b""
    left: bool = False

    def messages(self) -> list[dict] | None:
        """What it has sent since; None once the connection is broken, or what comes is none of ours."""
        try:
            chunk = self.connection.recv(1 << 16)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError:
            return None
        if not chunk:
            return None
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        if self.rank is None and len(self.unread) > MOST_UNREAD:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None


class Heart:
    """What both ends share.

    hint: what the line that ends a run says of going on; set as checkpoints are written. before_failing: called by the
    first rank before it ends in a fault; given FOR_THE_RECORD.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.hint = ""
        self.before_failing: Callable[[], None] | None = None
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    @property
    def interval(self) -> float:
        """Seconds between two beats."""
        return min(self.timeout / 5, 2.0)

    def _away(self, now: float) -> float:
        """Seconds that this process was stopped since the last call, as all are where a job is suspended, in which it
        could not hear the others."""
        gap, self._looked = now - self._looked, now
        return gap if gap > 2 * self.interval else 0.0

    def _run(self) -> None:
        try:
            self._watch()
        except BaseException:
            _print(traceback.format_exc())
            os._exit(FAILED)  # rather than train on unwatched

    def _watch(self) -> None:
        raise NotImplementedError

    def _report(self, fault: Fault) -> None:
        raise NotImplementedError

    def fail(self, fault: Fault) -> NoReturn:
        """Say that this rank fails, and end with all others."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises for a reader of data that has died
        self._report(fault)
        self._thread.join()
        os._exit(fault.code)


class Monitor(Heart):
    """Rank 0's: knows all ranks, decides what ended the run, and says it.

    names: of each rank's host, to name those that do not come, where the launcher tells it.
    """

    def __init__(self, world_size: int, timeout: float, seconds_to_join: float, names: list[str] | None = None):
        super().__init__(timeout)
        self.world_size, self._names = world_size, names
        self.token = secrets.token_hex(8)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._peers: list[Peer] = []
        self._faults: list[tuple[str, Fault]] = []  # (where, what), as they came
        self._lost: set[int] = set()  # ranks whose host may be
        self._first_at = 0.0
        self._left_at: float | None = None
        self._join_until = time.monotonic() + seconds_to_join
        self._seconds_to_join = seconds_to_join
        self._all_here, self._all_gone = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._close)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Returns once every rank has come; ends the process where one does not."""
        if self.world_size > 1:
            self._all_here.wait()

    def leave(self) -> None:
        """Returns once every rank has left; ends the process where one does not."""
        self._left_at = time.monotonic()
        self._all_gone.wait()

    def _report(self, fault: Fault) -> None:
        self._add(f"rank 0 on {socket.gethostname()}: ", fault)

    def _add(self, where: str, fault: Fault) -> None:
        with self._lock:
            self._first_at = self._first_at or time.monotonic()
            self._faults.append((where, fault))

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        beaten = 0.0
        while not self._all_gone.is_set():
            for key, _ in selector.select(POLL):
                if key.fileobj is self._listener:
                    self._accept(selector)
                else:
                    self._read(key.data, selector)
            now = time.monotonic()
            if now - beaten >= self.interval:
                beaten = now
                self._tell_all({})
            self._forgive(self._away(now), now)
            for peer in [peer for peer in self._peers if peer.rank is None and now - peer.since > TO_SAY_WHO]:
                self._hang_up(peer, selector)
            self._look_for_the_missing(now)
            self._look_for_the_silent(now)
            if self._is_decided(now):
                self._end_all()
            here = [peer for peer in self._peers if peer.rank is not None]
            if len(here) == self.world_size - 1:
                if not self._all_here.is_set():
                    self._tell_all({"all_here": socket.gethostname()})
                    self._all_here.set()
                if self._left_at is not None and all(peer.left for peer in here):
                    self._all_gone.set()
        self._close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # it has gone already
            return
        connection.setblocking(False)
        peer = Peer(connection)
        self._peers.append(peer)
        selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: Peer, selector: selectors.BaseSelector) -> None:
        messages = peer.messages()
        for message in messages or ():
            if "token" in message:
                messages = messages if self._welcomes(peer, message) else None
            elif "left" in message:
                peer.left = True
            elif "fault" in message and peer.rank is not None:
                self._add(_where([peer]), Fault(**message["fault"]))
        if messages is None:
            self._hang_up(peer, selector)
            if peer.rank is not None and not peer.left:
                peer.left = True
                # A process that is killed ends its connection at once; after a silence it was its host, as it restarts.
                if time.monotonic() - peer.heard > 3 * self.interval:
                    self._lost.add(peer.rank)
                self._add("", Fault(_died(_where([peer]))))

    def _hang_up(self, peer: Peer, selector: selectors.BaseSelector) -> None:
        selector.unregister(peer.connection)
        peer.connection.close()
        if peer.rank is None:  # not one of ours
            self._peers.remove(peer)

    def _forgive(self, away: float, now: float) -> None:
        """Give the others the time in which this process was stopped."""
        if away:
            for peer in self._peers:
                peer.heard = min(now, peer.heard + away)
                peer.since += away
            self._join_until += away
            self._left_at = self._left_at and self._left_at + away

    def _welcomes(self, peer: Peer, said: dict) -> bool:
        """Take a rank in; False for one of another run, which found this monitor at the port that it was given."""
        known = {0, *(other.rank for other in self._peers)}
        if said["token"] != self.token or said["rank"] in known or said["rank"] >= self.world_size:
            return False
        peer.rank, peer.host = said["rank"], said["host"]
        return True

    def _look_for_the_missing(self, now: float) -> None:
        if now < self._join_until or self._all_here.is_set() or self._faults:
            return
        came = {0, *(peer.rank for peer in self._peers)}
        missing = [rank for rank in range(self.world_size) if rank not in came]
        on = f" on {', '.join(dict.fromkeys(self._names[rank] for rank in missing))}" if self._names else ""
        there = f"{self.world_size - len(missing)} of {self.world_size} ranks did"
        at = f"to port {self.port} of {socket.gethostname()} within {self._seconds_to_join:g} s"
        more = "GENEBERT_SECONDS_TO_JOIN gives slow storage more time"
        self._add("", Fault(f"{_named(missing)}{on} did not come {at}; {there}; {more}"))

    def _look_for_the_silent(self, now: float) -> None:
        present = [peer for peer in self._peers if peer.rank is not None and not peer.left]
        silent = next((peer for peer in present if now - peer.heard > self.timeout), None)
        if silent and not self._faults:
            nearly = self.timeout - 2 * self.interval
            with_it = [peer for peer in present if peer.host == silent.host and now - peer.heard > nearly]
            self._lost |= {peer.rank for peer in with_it}
            self._add("", Fault(_silent(_where(with_it), self.timeout)))
        if self._left_at is not None and now - self._left_at > self.timeout and present and not self._faults:
            self._add("", Fault(f"{_where(present)}not at the end {self.timeout:g} s after rank 0"))

    def _is_decided(self, now: float) -> bool:
        with self._lock:
            if not self._faults:
                return False
            waited = now - self._first_at
            known = any(not fault.follows for _, fault in self._faults)
        return waited > (FOR_THE_SAME if known else FOR_THE_CAUSE)

    def _end_all(self) -> NoReturn:
        with self._lock:
            faults = list(self._faults)
        # The launcher ends ranks by SIGTERM where another one died.
        where, fault = min(faults, key=lambda entry: (entry[1].follows, entry[1].code == TERMINATED))
        if sum(other.text == fault.text for _, other in faults) > 1:
            where = ""  # what several ranks meet is no rank's own
        _print(fault.trace + fault.line(where, self.hint))
        hosts.hang_up(self._lost)
        self._tell_all({"end": fault.code})
        record = threading.Thread(target=self.before_failing, daemon=True)
        record.start()
        until = time.monotonic() + FOR_THE_WORD
        # A connection that is closed while there is something to read may lose the word.
        for peer in (peer for peer in self._peers if not peer.left):
            while not peer.left and (left := until - time.monotonic()) > 0:
                peer.connection.settimeout(left)
                with suppress(OSError):
                    peer.left = not peer.connection.recv(4096)
        record.join(FOR_THE_RECORD)
        os._exit(fault.code)

    def _tell_all(self, message: dict) -> None:
        for peer in self._peers:
            if peer.rank is not None and not peer.left:
                with suppress(OSError):  # a broken connection shows when it is read
                    peer.connection.sendall(_line(message))

    def _close(self) -> None:
        self._listener.close()
        for peer in self._peers:
            peer.connection.close()


class Member(Heart):
    """Any other rank's. Ends its process on the monitor's word, or where the monitor is lost.

    speaks: whether it is the one to say the latter; connection: to the monitor.
    """

    def __init__(self, connection: socket.socket, rank: int, token: str, timeout: float, speaks: bool):
        super().__init__(timeout)
        self.speaks = speaks
        self._monitor = Peer(connection, rank=0, host=str(connection.getpeername()[0]))
        self._all_here, self._has_left = threading.Event(), False
        self._lock = threading.Lock()
        connection.settimeout(POLL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tell({"token": token, "rank": rank, "host": socket.gethostname()})
        os.register_at_fork(after_in_child=connection.close)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Returns once every rank has come; ends the process where one does not."""
        self._all_here.wait()

    def leave(self) -> None:
        self._has_left = True
        self._tell({"left": True})

    def _report(self, fault: Fault) -> None:
        self._tell({"fault": asdict(fault)})

    def _tell(self, message: dict) -> None:
        with self._lock, suppress(OSError):  # a broken connection shows when it is read
            self._monitor.connection.sendall(_line(message))

    def _watch(self) -> None:
        monitor, beaten = self._monitor, 0.0
        while not self._has_left:
            messages = monitor.messages()
            for message in messages or ():
                if "end" in message:
                    os._exit(message["end"])
                if "all_here" in message:
                    monitor.host = message["all_here"]
                    self._all_here.set()
            now = time.monotonic()
            if now - beaten >= self.interval:
                beaten = now
                self._tell({})
            if self._has_left:
                return
            monitor.heard = min(now, monitor.heard + self._away(now))
            lost = None
            if messages is None:
                lost = _died(_where([monitor]))
            elif now - monitor.heard > self.timeout:
                lost = _silent(_where([monitor]), self.timeout)
            if lost:
                if self.speaks:
                    _print(Fault(lost).line(hint=self.hint))
                os._exit(FAILED)


def _line(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _where(peers: list[Peer]) -> str:
    return f"{_named(sorted(peer.rank for peer in peers))} on {peers[0].host}: "


def _died(where: str) -> str:
    return f"{where}its process has died, as one does that is killed, perhaps for want of memory"


def _silent(where: str, timeout: float) -> str:
    return f"{where}not heard of for {timeout:g} s; its process hangs, or its host is down or cut off"


def _print(text: str) -> None:
    """Past sys.stderr, whose lock the main thread may hold."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
