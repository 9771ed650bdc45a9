"""Hosts on one machine, to run the launcher over them as the users of a cluster do.

    python tests/cluster/cluster.py up 4                   bring up node1 ... node4
    python tests/cluster/cluster.py exec node1 COMMAND     run COMMAND on node1, in the present folder
    python tests/cluster/cluster.py cut node3              pull its network cable; `join node3` plugs it in again
    python tests/cluster/cluster.py down                   end what `up` started

A host is a process of sshd in namespaces of its own: network, name, mounts, processes. Its eth0 (10.77.0.K) is one end
of a cable whose other end is in the switch, one more such process. Each host knows the others by name, as each node of
a cluster does, and root may log in from one to another: ssh is set up as the README says. All share this machine's
files, cores and memory. Ending a host's process ends all that runs on it.

Needs root, pdsh, the OpenSSH server, iproute2 and util-linux, and installs none of them; `check` says what is missing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

FOLDER = Path(tempfile.gettempdir()) / "genebert-cluster"
SWITCH = "switch"
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
NAMESPACES = ("net", "uts", "mount", "pid")
SECONDS_TO_START = 20
PACKAGES = {  # of Debian and Ubuntu, with the programs of each that are used
    "pdsh": ("pdsh",),
    "openssh-server": ("sshd",),
    "openssh-client": ("ssh", "ssh-keygen"),
    "iproute2": ("ip",),
    "util-linux": ("unshare", "nsenter", "setpriv"),
    "procps": ("pgrep", "pkill"),
}
SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
"""
SSH = """
Host node*
    IdentityFile {folder}/user_key
    GlobalKnownHostsFile {folder}/known_hosts
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 10
    ServerAliveCountMax 3
"""
# What a host does first: its own name, /etc/hosts, ssh's settings and /run; then it is its sshd.
HOST = """
hostname {name}
mount --bind {folder}/{name}.hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mount -t tmpfs tmpfs /run
mkdir /run/sshd
exec {sshd} -D -f {folder}/sshd_config -E {folder}/{name}.log
"""


class ClusterError(Exception):
    """What is wrong and what to do, in one line."""


def program(name: str) -> str | None:
    """Path of a program, also where only root's PATH names its folder."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def missing() -> str | None:
    """What this machine lacks, with how to get it; None where a cluster can be brought up."""
    lacks = [] if sys.platform == "linux" else ["Linux"]
    lacks += [] if os.geteuid() == 0 else ["root"]
    packages = [name for name, programs in PACKAGES.items() if not all(map(program, programs))]
    if packages:
        lacks.append(f"{', '.join(packages)} (apt-get install -y {' '.join(packages)})")
    return f"hosts on this machine need {' and '.join(lacks)}" if lacks else None


class Cluster:
    """The hosts that were brought up in `folder`; temporary: they also end with the process that brings them up."""

    def __init__(self, folder: Path = FOLDER, temporary: bool = False):
        self.folder, self.temporary = folder, temporary
        self.state = folder / "processes.json"

    def up(self, size: int) -> None:
        """Bring up `size` hosts, and wait until each answers to ssh."""
        if problem := missing():
            raise ClusterError(problem)
        if self.folder.exists():
            raise ClusterError(f"{self.folder} is there: a cluster is up; end it by: python {__file__} down")
        if not 1 <= size <= 200:
            raise ClusterError(f"{size} hosts: give 1 to 200")
        self.folder.mkdir(mode=0o700)
        try:
            self._write_settings(size)
            self._start(SWITCH, "exec sleep infinity")
            self._on(SWITCH, "ip link add switch type bridge", "ip link set switch up")
            for number in range(1, size + 1):
                self._start_host(number)
            for number in range(1, size + 1):
                self._wait_for(f"node{number}")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End the hosts with all that runs on them, and forget them."""
        for name in self._processes():
            if process := self._find(name):
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, host: str, command: list[str], **options) -> subprocess.Popen:
        """Start a command on a host, in the present folder, with `subprocess.Popen`'s options.

        Its children go with it only where it ends them, as on any host.
        """
        return subprocess.Popen([*self._enter(host, *NAMESPACES), "env", f"--chdir={os.getcwd()}", *command], **options)

    def run(self, host: str, command: list[str]) -> str:
        """What a command on a host prints; raises `ClusterError` where it fails."""
        process = self.start(host, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        output, _ = process.communicate()
        if process.returncode:
            raise ClusterError(f"{' '.join(command)} on {host}: exit code {process.returncode}: {output.strip()}")
        return output

    def cut(self, host: str) -> None:
        """Take a host off the network; what runs on it goes on running."""
        self._enter(host)
        self._on(SWITCH, f"ip link set port-{host} down")

    def join(self, host: str) -> None:
        """Put it back, and wait until it answers."""
        self._enter(host)
        self._on(SWITCH, f"ip link set port-{host} up")
        self._wait_for(host)

    def _write_settings(self, size: int) -> None:
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)], check=True)
        public = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"node* {public}")
        (self.folder / "sshd_config").write_text(SSHD.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(SSH.format(folder=self.folder))
        addresses = {f"node{number}": f"10.77.0.{number}" for number in range(1, size + 1)}
        for name in addresses:
            # As Debian's installer does, a host's own name is a loopback address to itself.
            table = [("localhost", "127.0.0.1"), (name, "127.0.1.1"), *addresses.items()]
            (self.folder / f"{name}.hosts").write_text("".join(f"{ip}\t{host}\n" for host, ip in table))

    def _start_host(self, number: int) -> None:
        name = f"node{number}"
        self._start(name, HOST.format(name=name, folder=self.folder, sshd=program("sshd")))
        self._on(
            SWITCH,
            f"ip link add port-{name} type veth peer name eth0 netns {self._find(name).pid}",
            f"ip link set port-{name} master switch",
            f"ip link set port-{name} up",
        )
        self._on(name, "ip link set lo up", f"ip addr add 10.77.0.{number}/24 dev eth0", "ip link set eth0 up")

    def _start(self, name: str, script: str) -> None:
        """Start a process in new namespaces, which last as long as it does."""
        new = [f"--{namespace}" for namespace in NAMESPACES]
        unshare = ["unshare", *new, "--fork", "--kill-child", "--mount-proc"]
        outside = subprocess.Popen(
            [*(END_WITH_PARENT if self.temporary else ()), *unshare, "sh", "-e", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{name}.log").open("ab"),
            start_new_session=True,
        )
        until = time.monotonic() + SECONDS_TO_START
        while not (children := psutil.Process(outside.pid).children()):
            if outside.poll() is not None or time.monotonic() > until:
                raise ClusterError(f"{name} does not start: {self._log(name)}")
            time.sleep(0.01)
        started = self._processes() | {name: [children[0].pid, children[0].create_time()]}
        self.state.write_text(json.dumps(started))

    def _wait_for(self, name: str) -> None:
        until = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                self.run("node1", ["ssh", name, "true"])
                return
            except ClusterError as error:
                if time.monotonic() > until:
                    raise ClusterError(f"{error}; its sshd says: {self._log(name)}") from None
                time.sleep(0.1)

    def _log(self, name: str) -> str:
        return " ".join((self.folder / f"{name}.log").read_text().split()) or "nothing"

    def _processes(self) -> dict[str, list]:
        """By name, the process number of each host and of the switch, and when it was started."""
        return json.loads(self.state.read_text()) if self.state.exists() else {}

    def _find(self, name: str) -> psutil.Process | None:
        """The process that `up` started, unless it has ended."""
        number, created = self._processes().get(name, (None, None))
        if number is None or not psutil.pid_exists(number):
            return None
        process = psutil.Process(number)
        return process if process.create_time() == created else None

    def _enter(self, name: str, *namespaces: str) -> list[str]:
        """The command that runs what follows in namespaces of a host."""
        process = self._find(name)
        if not process:
            known = ", ".join(host for host in self._processes() if host != SWITCH)
            raise ClusterError(f"{name} is not up; " + (f"hosts: {known}" if known else "`up 4` brings up four"))
        return ["nsenter", f"--target={process.pid}", *(f"--{namespace}" for namespace in namespaces), "--"]

    def _on(self, name: str, *commands: str) -> None:
        """Run commands in the network of a host or of the switch."""
        for command in commands:
            done = subprocess.run([*self._enter(name, "net"), *command.split()], capture_output=True, text=True)
            if done.returncode:
                raise ClusterError(f"{command}: {done.stderr.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("check", help="say what this machine lacks")
    actions.add_parser("up", help="bring up node1 ... nodeN").add_argument("size", type=int)
    actions.add_parser("down", help="end what `up` started")
    for action, text in (("cut", "take a host off the network"), ("join", "put it back")):
        actions.add_parser(action, help=text).add_argument("host")
    execute = actions.add_parser("exec", help="run a command on a host")
    execute.add_argument("host")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    cluster = Cluster()
    try:
        match arguments.action:
            case "check":
                if problem := missing():
                    raise ClusterError(problem)
            case "up":
                cluster.up(arguments.size)
            case "down":
                cluster.down()
            case "cut":
                cluster.cut(arguments.host)
            case "join":
                cluster.join(arguments.host)
            case "exec":
                return cluster.start(arguments.host, arguments.command).wait()
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
