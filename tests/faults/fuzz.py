"""Feed damaged input to the commands: `python tests/faults/fuzz.py --cases 5000 --seed 0`.

Every case is a command on damaged input in a sandbox of its own (see fuzz_cases.py). It passes if the command

- succeeds, or exits with 2 and one line on stderr that begins with "error:" (beside progress bars and known notices);
- ends in time and within the limit of memory, and leaves no process behind;
- writes below its output folder only, leaves nothing half-written there, and what stood there if it fails;
- leaves its input as it was, connects to nothing and starts nothing but ffmpeg.

Cases run one after the other, each in a fork of one process that has imported everything; nine of ten with nnabla's own
operators, as those compiled by numba take longer to load than all the rest. What fails is kept, with the command line,
in a folder; `--replay N` makes one case again and shows what it prints.
"""

import collections
import importlib
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "faults")]
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"  # threads of the parent would not survive the fork

import fuzz_cases  # noqa: E402 - needs the paths above

from mrfomm.errors import command_parser, run_command  # noqa: E402

COMMANDS = {
    "animate": "mrfomm.commands.animate",
    "reconstruct": "mrfomm.commands.reconstruct",
    "train": "mrfomm.commands.train",
    "convert": "mrfomm.convert.__main__",
    "bins": "eval.bins.__main__",
    "score": "eval.reconstruction.__main__",
    "report": "eval.report",
}
EXTRA_MEMORY = 3 << 30  # bytes of addresses beyond those of the parent
MOST_RESIDENT = 2 << 30  # bytes
PATIENCE = 4  # limits of a case, on a machine where the programs it starts wait for others
TRAINING_SECONDS = 0.2  # until a training that has begun is asked to stop
NOTICES = re.compile(
    r"|".join(
        (
            r".*\d+%\|.*",  # a progress bar
            r".*\d+(frame|clip|step|pattern|image)s? \[.*",  # one without a total
            r".*: cropped to \d+x\d+ pixels at .*",
            r".*: taken at \S+ frames a second, as a folder doesn't say; --fps sets it",
            r".*: (its colour profile can't be used|Adobe RGB by its EXIF).*",
            r".*: (filmed in half frames|the picture's shape changes|its sound is damaged).*",
            r".*: damaged \(.*\); its first \d+ frames are used",
            r".*: faces in \d+ places; .*",
            r".*: no face inside the box in \d+ of \d+ frames searched; .*",
            r"motion starts at driving frame \d+ from reference \d+",
            r"stepping over a checkpoint: .*",
            r".*: is of (step \d+; it stays until|a later step; kept as) .*",
            r"(data|device|folder|model|steps) {2,}\S.*|model\.image_size = \d+ is larger than the clips.*",
            r"( {4})?.* --resume \S+|stopping after this step.*",
            r"(stopped; step \d+ is saved|all \d+ epochs are done|the training clips are others).*",
            r"(train|data)\.\w+ was .*, is .*|.*: trained with model\..*",
            r"\d+ of \d+ training clips have fewer than .*|.*: not there, so nothing is validated .*",
            r".*: \d+ of \d+ clips are there already",
            r".*: its scores are of another result, back end or version, and are replaced",
            r".*skipping a broken clip: .*",
        )
    )
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Outcome(NamedTuple):
    """case: fuzz_cases.Case; code: exit code, or minus the signal; problems: why it fails; stderr: text."""

    case: fuzz_cases.Case
    code: int
    problems: list[str]
    stderr: str
    seconds: float
    resident: int


# One case, in a process of its own


def run_case(case, sandbox, compiled):
    """Run a Case's command in this process, which ends with it. compiled: whether with numba's operators."""
    os.setsid()  # so that what it starts can be found
    os.chdir(sandbox)
    os.environ.update(TMPDIR=str(sandbox / "tmp"), HOME=str(sandbox / "home"), XDG_CACHE_HOME=str(sandbox / "home"))
    tempfile.tempdir = None
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(sandbox / name, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 1
    try:
        module = importlib.import_module(COMMANDS[case.command])
        if not compiled:
            plain_operators()
        if case.command == "train":
            _stop_training_soon()
        _limit_memory()
        _watch(sandbox)
        run_command(lambda: module.main(list(case.arguments)))
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plain_operators():
    """Leave numba out of this process."""
    ops = importlib.import_module("mrfomm.networks.ops")
    ops.fastest = lambda _: ops.NNABLA


def _limit_memory():
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + EXTRA_MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _stop_training_soon():
    """A training that gets as far as its loop is asked to stop, as by SIGTERM, which ends it with 130."""
    trainer = importlib.import_module("mrfomm.training.trainer").Trainer
    run = trainer.run

    def run_briefly(self):
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, TRAINING_SECONDS)
        try:
            return run(self)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)  # nobody turns the signal into a wish any more

    trainer.run = run_briefly


def _watch(sandbox):
    """Note what Python code writes elsewhere than in the sandbox, which programs it starts and what it connects to."""
    compiled = ROOT / "mrfomm" / "networks" / "cpu" / "__pycache__"  # what numba keeps there, see kernels.py
    allowed = tuple(f"{path}/" for path in (compiled, *(sandbox / part for part in ("out", "tmp", "home"))))
    log = os.open(sandbox / "audit", os.O_WRONLY | os.O_CREAT)

    def resolved(path, descriptor=-1):
        if isinstance(descriptor, int) and descriptor >= 0:
            base = os.readlink(f"/proc/self/fd/{descriptor}")
        else:
            base = os.getcwd()
        whole = os.path.join(base, os.fsdecode(path))
        return os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))

    def note(event, what):
        os.write(log, f"{event} {what!r}\n".encode(errors="backslashreplace"))

    def check(event, path, descriptor=-1):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        where = resolved(path, descriptor)
        if not f"{where}/".startswith(allowed) and where not in ("/dev/null",):
            note(event, where)

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & WRITING
            if writes and not (isinstance(flags, int) and flags & os.O_TMPFILE == os.O_TMPFILE):
                check(event, path)
        elif event in ("os.remove", "os.rmdir"):
            check(event, *arguments)
        elif event == "os.mkdir":
            check(event, arguments[0], arguments[2])
        elif event == "os.rename":
            check(event, arguments[0], arguments[2])
            check(event, arguments[1], arguments[3])
        elif event in ("os.symlink", "os.link"):
            check(event, arguments[1])
        elif event == "subprocess.Popen":
            if "ffmpeg" not in str(arguments[0]) and str(arguments[0]) != sys.executable:
                note(event, arguments[0])
        elif event in ("socket.connect", "os.system", "os.exec", "os.posix_spawn", "os.truncate"):
            note(event, arguments)

    sys.addaudithook(hook)


# The parent


def judge(case, sandbox, before, code, seconds, resident):
    """The Outcome of a case that has ended."""
    stderr = (sandbox / "stderr").read_text(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr.replace("\x1b[A", ""))]
    said = [line for line in lines if line and not NOTICES.fullmatch(line)]
    problems = []
    if code == 2:
        if len(said) != 1 or not said[0].startswith("error: ") or len(said[0]) < 20:
            problems.append(f"exit code 2 and {len(said)} lines")
        if len(stderr) > 20_000:
            problems.append(f"{len(stderr)} characters on stderr")
    elif code == 0 or (case.command == "train" and code == 130):
        problems += [f"says: {line[:200]}" for line in said]
    else:
        problems.append(f"exit code {code}" if code >= 0 else signal.Signals(-code).name)
    if resident > MOST_RESIDENT:
        problems.append(f"{resident >> 20} MB")
    problems += _stray_files(case, sandbox, before, code)
    audit = sandbox / "audit"
    problems += [f"audit: {line}" for line in (audit.read_text().splitlines() if audit.exists() else [])]
    return Outcome(case, code, problems, stderr, seconds, resident)


def _stray_files(case, sandbox, before, code):
    """Yield what is changed that should not be, or is left over."""
    after = listing(sandbox)
    own = {"stdout", "stderr", "audit"}
    for name in sorted(after.keys() | before.keys()):
        top, _, rest = name.partition("/")
        if name in own or before.get(name) == after.get(name):
            continue
        is_folder = stat.S_ISDIR((after.get(name) or before.get(name))[0])
        if top != "out":
            if not is_folder or name not in before:
                yield f"changed: {name}"
        elif code and name in before and case.command in ("animate", "convert"):
            if not is_folder:
                yield f"lost: {name}"
        elif code and case.command == "animate" and name not in before:
            yield f"left: {name}"
        elif name not in before and re.search(r"(^|/)\.(?!lock$)|\.partial", _own_name(case, rest)):
            yield f"half-written: {name}"
        elif name == "out/earlier.txt":
            yield f"lost: {name}"


def _own_name(case, path):
    """A path below out/ without the name that was asked for, which may begin with a dot."""
    asked = [argument[len("--output=out/") :] for argument in case.arguments if argument.startswith("--output=out/")]
    return next((path[len(name) :] for name in asked if path.startswith(name)), path)


def listing(folder):
    """Relative path -> (mode, size, time of the last change) of everything in a folder; links are not followed."""
    found: dict[str, tuple] = {}
    for base, folders, files in os.walk(os.fsencode(folder)):
        for name in (*folders, *files):
            path = os.path.join(base, name)
            status = os.lstat(path)
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = status.st_mode, size, status.st_mtime_ns
    return found


def fork_case(case, sandbox, limit, compiled):
    """Run a case in a fork of this process -> Outcome."""
    before = listing(sandbox)
    start = time.monotonic()
    child = os.fork()
    if not child:
        run_case(case, sandbox, compiled)
    ended = _wait(child, limit)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - start
    code = os.waitstatus_to_exitcode(status)
    left = _end_group(child)
    outcome = judge(case, sandbox, before, code, seconds, usage.ru_maxrss * 1024)
    late = [] if ended else [f"took more than {limit:g} s"]
    return outcome._replace(problems=outcome.problems + late + (["left processes behind"] if left and ended else []))


def _wait(child, limit):
    """Wait for a process; returns whether it has ended within the limit. Waiting for a busy machine doesn't count."""
    handle, start = os.pidfd_open(child), time.monotonic()
    try:
        while not select.select([handle], [], [], 0.5)[0]:
            passed = time.monotonic() - start
            waited = int(Path(f"/proc/{child}/schedstat").read_text().split()[1]) / 1e9
            if passed - waited > limit or passed > PATIENCE * limit:
                return False
        return True
    finally:
        os.close(handle)


def _end_group(group):
    """End what is left of a process group after a moment; returns whether there was something."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


def in_fork(work):
    """Run a function in a fork, so that this process stays without threads; returns whether it went well."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def prepare(folder):
    """Import the commands and make the healthy files, unless they are there; returns the folder they are in."""
    for module in (*COMMANDS.values(), "mrfomm.networks.cpu.backend", "matplotlib.backends.backend_agg"):
        importlib.import_module(module)
    seeds, whole = folder / "seeds", folder / "seeds-are-whole"  # runs name their data's place: no renaming at the end
    if not whole.exists():
        shutil.rmtree(seeds, ignore_errors=True)
        if not in_fork(lambda: (plain_operators(), fuzz_cases.make_seeds(seeds))):
            raise RuntimeError("the healthy files can't be made")
        whole.touch()
    return seeds


def run_cases(seed, numbers, folder, limit):
    """Run cases of a seed; the sandboxes of those that fail stay in ``folder/failed``. Yield (number, Outcome)."""
    seeds = prepare(folder)
    for number in numbers:
        sandbox = folder / "box" / str(number)
        shutil.rmtree(sandbox, ignore_errors=True)
        case = fuzz_cases.make_case(seeds, sandbox, seed, number)
        outcome = fork_case(case, sandbox, limit, compiled=number % 10 == 0)
        if outcome.problems:
            keep(outcome, sandbox, folder / "failed" / f"{seed}-{number}")
        else:
            shutil.rmtree(sandbox)
        yield number, outcome


def keep(outcome, sandbox, target):
    """Move a sandbox to where it stays, with what is to be known about it."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    sandbox.rename(target)
    command = f"python -m {COMMANDS[outcome.case.command]} {shlex.join(outcome.case.arguments)}"
    text = [outcome.case.what, command, *outcome.problems]
    (target / "case.txt").write_text("\n".join(text) + "\n", errors="backslashreplace")


def log(path, seed, number, outcome):
    """Add a line of JSON on a case to a file."""
    told = outcome.stderr.strip().splitlines()
    row = {"seed": seed, "number": number, **outcome._asdict(), "case": outcome.case._asdict()}
    row["stderr"] = told[-1][-300:] if told else ""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


class Statistics:
    """What is told at the end."""

    def __init__(self):
        self.outcomes = collections.defaultdict(list)

    def add(self, outcome):
        """Count an Outcome."""
        light = outcome._replace(stderr="", case=outcome.case._replace(arguments=()))
        self.outcomes[outcome.case.kind, outcome.case.command].append(light)

    def table(self):
        """Markdown: a row for each kind of input and command."""
        lines = [
            "| input | command | cases | exit 0 | exit 2 | failed | slowest | most memory |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        for (kind, command), outcomes in sorted(self.outcomes.items()):
            lines.append(f"| {kind} | {command} | {self._row(outcomes)} |")
        everything = [outcome for outcomes in self.outcomes.values() for outcome in outcomes]
        lines.append(f"| all | | {self._row(everything)} |")
        return "\n".join(lines)

    @staticmethod
    def _row(outcomes):
        fine = [outcome for outcome in outcomes if not outcome.problems]
        codes = collections.Counter(2 if outcome.code == 2 else 0 for outcome in fine)
        slowest = max(outcome.seconds for outcome in outcomes)
        most = max(outcome.resident for outcome in outcomes) >> 20
        failed = len(outcomes) - len(fine)
        return f"{len(outcomes)} | {codes[0]} | {codes[2]} | {failed} | {slowest:.1f} s | {most} MB"


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--cases", type=int, default=200, metavar="N", help="how many (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the cases (%(default)s)")
    add("--first", type=int, default=0, metavar="N", help="number of the first case (%(default)s)")
    add("--replay", type=int, metavar="N", help="only this case, with what it prints")
    add("--seconds", type=float, default=20, metavar="S", help="limit of one case (%(default)s)")
    add("--folder", type=Path, help="for sandboxes and what fails (a new one below the folder for temporary files)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    replayed = args.replay is not None
    numbers = [args.replay] if replayed else range(args.first, args.first + args.cases)
    statistics, failed = Statistics(), 0
    for number, outcome in run_cases(args.seed, numbers, folder, args.seconds):
        statistics.add(outcome)
        log(folder / "cases.jsonl", args.seed, number, outcome)
        failed += bool(outcome.problems)
        if outcome.problems or replayed:
            command = shlex.join(outcome.case.arguments)
            print(f"case {number}: {outcome.case.kind}, {outcome.case.what}".encode(errors="replace").decode())
            print(f"  {outcome.case.command} {command[:300]}".encode(errors="replace").decode())
            print("  " + "; ".join(outcome.problems)[:600].encode(errors="replace").decode())
            told = outcome.stderr if replayed else outcome.stderr[-400:]
            print("  " + told.strip().replace("\n", "\n  ").encode(errors="replace").decode(), flush=True)
    print(statistics.table())
    print(f"{failed} failed; sandboxes and healthy files in {folder}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
