"""Two machines on one: network and UTS namespaces joined by a link that can be cut; needs root, `ip` and `unshare`.

Open MPI's mpirun starts its daemon on the other machine by an agent in ssh's place: this file, run as a program.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("alpha", "beta")
NETWORK = "10.77.31"
AGENT = "MRFOMM_TEST_HOSTS"  # tells the agent the prefix of the namespaces, and what beta does first


def why_not():
    """Why hosts can't be had here, or None."""
    missing = [name for name in ("ip", "unshare") if not shutil.which(name)]
    if os.geteuid() or missing:
        return f"needs {' and '.join(missing)}" if missing else "needs root"
    name = f"mrfomm-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"network namespaces can't be made here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Hosts:
    """The two machines, alpha (10.77.31.1) and beta (10.77.31.2).

    ``first``: a shell command that beta begins with. ``folder``: where files ``stdout`` and ``stderr`` are of the last
    mpirun; pipes would be held open by a daemon that is out of reach.
    """

    def __init__(self, folder):
        self.folder, self.prefix, self.first = folder, f"mrfomm-{os.getpid()}", ":"
        self.spaces = [f"{self.prefix}-{name}" for name in NAMES]

    def link(self, state):
        """Set the link ``up`` or ``down``."""
        _ip("-n", self.spaces[0], "link", "set", "eth0", state)

    def pids(self, name, containing=""):
        """The processes on a machine whose command line contains some text."""
        listed = subprocess.run(["ip", "netns", "pids", f"{self.prefix}-{name}"], capture_output=True, text=True)
        return [pid for pid in map(int, listed.stdout.split()) if containing in command_line(pid)]

    def mpirun(self, *command):
        """Start a Python command in one process on each machine, from alpha -> Popen."""
        settings = {
            "plm_rsh_agent": f"{sys.executable} {Path(__file__).resolve()}",
            "btl_tcp_if_include": f"{NETWORK}.0/24",
            "oob_tcp_if_include": f"{NETWORK}.0/24",
            "pml": "ob1",
            "btl": "tcp,self",  # ssh and TCP are what separate machines have
        }
        mca = [word for name, value in settings.items() for word in ("--mca", name, value)]
        addresses = ",".join(f"{NETWORK}.{number}:1" for number in (1, 2))
        words = [Path(sys.executable).with_name("mpirun"), "--host", addresses, "-n", 2, *mca, "--bind-to", "none"]
        agent = f"{self.prefix} {self.first}"
        environment = {**os.environ, AGENT: agent, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder)}
        with open(self.folder / "stdout", "wb") as stdout, open(self.folder / "stderr", "wb") as stderr:
            return subprocess.Popen(
                [*_inside(self.spaces[0], "alpha", ":"), *map(str, words), sys.executable, *map(str, command)],
                cwd=ROOT,
                env=environment,
                stdout=stdout,
                stderr=stderr,
            )

    def printed(self):
        """What the last mpirun has printed to stdout and stderr."""
        return [(self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr")]


@contextlib.contextmanager
def two_hosts(folder):
    """Context manager that yields Hosts; what still runs on them at the end is killed."""
    hosts = Hosts(folder)
    one, two = hosts.spaces
    try:
        for space in hosts.spaces:
            _ip("netns", "add", space)
        _ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        for number, space in enumerate(hosts.spaces, 1):
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
        yield hosts
    finally:
        for pid in (pid for name in NAMES for pid in hosts.pids(name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for space in hosts.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False)


def _ip(*words):
    subprocess.run(["ip", *words], check=True)


def command_line(pid):
    """The words of a process, "" if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _inside(space, name, first):
    """The beginning of a command on a machine: in its network, under its name, with mounts of its own."""
    script = f'hostname {name} && {first} && exec "$@"'
    return ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "sh", "-c", script, "sh"]


if __name__ == "__main__":  # as ssh: ADDRESS COMMAND ...
    address, *words = sys.argv[1:]
    name = NAMES[int(address.rpartition(".")[2]) - 1]
    prefix, _, first = os.environ[AGENT].partition(" ")
    command = [*_inside(f"{prefix}-{name}", name, first), "sh", "-c", " ".join(words)]
    os.execvp(command[0], command)
