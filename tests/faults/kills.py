"""Kill commands at random moments and repeat them: `python tests/faults/kills.py --kills 10 --seed 0`.

For every command: after a `kill -9` nothing half-written stands under a final name; the same command then completes
with the result of a run that nobody disturbed; what was whole before is not made again. A damaged entry of a cache is
noticed and made again. Runs are forks of one process that has imported everything, and use nnabla's own operators, so
that kills fall into the work and not into what is loaded before.
"""

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuzz  # first: it sets the paths and the number of threads
import numpy as np
from PIL import Image

from mrfomm.errors import command_parser, run_command
from mrfomm.media.images import read_image
from mrfomm.media.writing import open_sink
from mrfomm.store import LOCK


class Job(NamedTuple):
    """A command to be killed.

    Attributes:
        name: shown.
        command: one of fuzz.COMMANDS.
        arguments: the command line, in a folder with ``seeds``; output goes below ``out``.
        begin: function that makes what stands in ``out`` before the run.
        check: function of (out, healthy out) that raises AssertionError after a kill, and returns the files that are
            whole and should not be made again.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    begin: Callable
    check: Callable


def contents(folder):
    """Relative path -> bytes of the files in a folder, but for the empty one that stands for its lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def is_hidden(name):
    """Whether a part of a path begins with a dot, as of files that are not whole yet."""
    return any(part.startswith(".") for part in Path(name).parts)


def nothing(out):
    """Nothing stands there before."""


def old_video(name):
    """A function that puts an older result in the place."""
    return lambda out: (out / name).write_bytes(b"an older result")


def old_frames(out):
    """An older result of two frames."""
    with open_sink(out / "frames", 25) as sink:
        for _ in range(2):
            sink.write(read_image(out.parent / "seeds" / "frames" / "0.png"))


def is_older_frame(data, out):
    """Whether these bytes are a picture of ``old_frames``."""
    with contextlib.suppress(OSError), Image.open(io.BytesIO(data)) as image:
        return np.array_equal(np.asarray(image), read_image(out.parent / "seeds" / "frames" / "0.png"))
    return False


def check_outputs(out, healthy):
    """Every output is there as a whole, or as it was before, or not at all; pictures may be of both runs."""
    for name, data in contents(out).items():
        if not is_hidden(name):
            assert data in (healthy[name], b"an older result") or is_older_frame(data, out), f"{name} is half-written"
    for folder in ("new/frames", "masks"):
        if (out / folder).exists():
            assert contents(out / folder).keys() == {
                name[len(folder) + 1 :] for name in healthy if name.startswith(folder)
            }
    return []


def check_rebuilt(out, healthy):
    """Clips in the manifest have all their pictures; a last line may be torn."""
    from mrfomm.reenactment.reconstruction import MANIFEST, is_whole, read_run

    folder = out / "rebuilt"
    if not (folder / MANIFEST).is_file():
        return []
    rows = read_run(folder, torn_line=True).rows
    assert all(is_whole(folder, row) for row in rows), "a clip in the manifest is not whole"
    names = [f"rebuilt/{frame.file}" for row in rows for frame in row.frames]
    assert all((out / name).read_bytes() == healthy[name] for name in names)
    return [out / name for name in names]


def check_bins(out, healthy):
    """Entries of the cache under their final names are whole; so are table and rows."""
    kept = []
    for name, data in contents(out).items():
        if is_hidden(name):
            continue
        if "generated" in name:
            assert data == healthy[name], f"{name} is half-written"
            entry = contents((out / name).parent)
            assert entry.keys() == {Path(other).name for other in healthy if Path(other).parent == Path(name).parent}
            kept.append(out / name)
        else:
            assert data.endswith((b"\n", b"IEND\xaeB`\x82")), f"{name} is half-written"
    return kept


def check_graphs(out, healthy):
    """A graph is whole; it counts as kept if its checksum is there too."""
    kept = []
    for name, data in contents(out).items():
        if name.endswith((".onnx", ".sha256")) and not is_hidden(name):
            assert data == healthy[name], f"{name} is half-written"
            if name.endswith(".onnx") and (out / name).with_suffix(".sha256").is_file():
                kept.append(out / name)
    return kept


ANIMATE = ("--refs", "seeds/images/a.png", "--weights", "seeds/weights", "--context=cpu")
NNABLA = ("--backend=nnabla",)
CLIP = ("--driving", "seeds/videos/a.mp4")
JOBS = (
    Job(
        "animate, mp4 with sound",
        "animate",
        (*ANIMATE, *CLIP, *NNABLA, "--output=out/a.mp4"),
        old_video("a.mp4"),
        check_outputs,
    ),
    Job("animate, gif", "animate", (*ANIMATE, *CLIP, *NNABLA, "--output=out/a.gif"), old_video("a.gif"), check_outputs),
    Job(
        "animate, new PNG folder and masks",
        "animate",
        (*ANIMATE, *CLIP, *NNABLA, "--output=out/new/frames", "--masks=out/masks"),
        nothing,
        check_outputs,
    ),
    Job(
        "animate, old PNG folder",
        "animate",
        (*ANIMATE, *CLIP, *NNABLA, "--output=out/frames"),
        old_frames,
        check_outputs,
    ),
    Job(
        "reconstruct",
        "reconstruct",
        ("--data=seeds/data", "--weights=seeds/weights", "--context=cpu", *NNABLA, "--batch=1", "--output=out/rebuilt"),
        nothing,
        check_rebuilt,
    ),
    Job(
        "eval.bins",
        "bins",
        ("--data=seeds/recordings", "--weights=seeds/weights", "--context=cpu", *NNABLA)
        + ("--bin-width=20", "--allow-missing-poses", "--batch=1", "--output=out/bins"),
        nothing,
        check_bins,
    ),
    Job("graph cache", "animate", (*ANIMATE, *CLIP, "--backend=onnx", "--output=out/a.mp4"), nothing, check_graphs),
)


# Running


def start(job, folder):
    """Run a job's command in a fork; returns the process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "out" / "cache")
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    code = 1
    fuzz.plain_operators()
    try:
        run_command(lambda: fuzz.importlib.import_module(fuzz.COMMANDS[job.command]).main(list(job.arguments)))
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(job, folder):
    """Run a job's command to its end; returns the seconds it took."""
    begin = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(job, folder), 0)[1])
    assert code == 0, f"{job.name}: exit code {code}: {(folder / 'log').read_text()[-500:]}"
    return time.monotonic() - begin


def fresh(job, folder):
    """Empty ``out``, and put there what is to stand there before the run."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    job.begin(out)
    return out


def killed(job, folder, after, with_children):
    """Start a job, kill it after some seconds; returns whether it was still at work."""
    child = start(job, folder)
    time.sleep(after)
    (os.killpg if with_children else os.kill)(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    time.sleep(0.1)  # what it had started may still write
    return code == -signal.SIGKILL


def try_job(job, folder, kills, rng):
    """Kill a job so many times, each time from the beginning, and repeat it; returns counts by name."""
    out = fresh(job, folder)
    seconds = finish(job, folder)
    healthy = contents(out)
    counts = {"kills": 0, "too late": 0, "kept": 0, "made again": 0, "left over": 0}
    while counts["kills"] < kills and counts["too late"] < 3 * kills + 3:
        fresh(job, folder)
        if not killed(job, folder, rng.uniform(0.02, seconds), bool(rng.random() < 0.5)):
            counts["too late"] += 1
            continue
        counts["kills"] += 1
        kept = {path: path.stat().st_mtime_ns for path in job.check(out, healthy)}
        finish(job, folder)
        again = [path for path, before in kept.items() if path.stat().st_mtime_ns != before]
        assert not again, f"{job.name}: made again though whole: {again[0]}"
        counts["kept"] += len(kept)
        after = contents(out)
        left = [name for name in after if is_hidden(name)]
        counts["left over"] += len(left)
        same(job, {name: data for name, data in after.items() if name not in left}, healthy)
    return counts


def same(job, found, healthy):
    """Raise AssertionError unless two runs' files are the same, but for the order of a manifest's lines."""
    assert found.keys() == healthy.keys(), f"{job.name}: {found.keys() ^ healthy.keys()}"
    for name, data in found.items():
        if name.endswith("manifest.jsonl"):
            assert sorted(data.splitlines()) == sorted(healthy[name].splitlines()), name
        else:
            assert data == healthy[name], f"{job.name}: {name} differs"


def damaged(job, folder, pattern, rng, times):
    """Damage one file of a finished run's cache, repeat the command: the file must be as before, others untouched."""
    out = fresh(job, folder)
    finish(job, folder)
    healthy = contents(out)
    for _ in range(times):
        path = sorted(out.rglob(pattern))[rng.integers(len(sorted(out.rglob(pattern))))]
        untouched = {other: other.stat().st_mtime_ns for other in out.rglob(pattern) if other.parent != path.parent}
        path.write_bytes(fuzz.fuzz_cases.mutations.flip_bits(rng, path.read_bytes()))
        finish(job, folder)
        same(job, contents(out), healthy)
        assert all(other.stat().st_mtime_ns == before for other, before in untouched.items()), (
            f"{job.name}: all was remade"
        )


def main(arguments=None):
    """Run the command; returns its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of every command (%(default)s)")
    parser.add_argument("--damages", type=int, default=3, help="of every cache (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--folder", type=Path, help="to work in (a new one for temporary files)")
    args = parser.parse_args(arguments)
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    fuzz.prepare(folder)
    rng = np.random.default_rng(args.seed)
    for job in JOBS:
        counts = try_job(job, folder, args.kills, rng)
        print(f"{job.name}: " + ", ".join(f"{count} {what}" for what, count in counts.items()), flush=True)
    patterns = {"reconstruct": "frames/*/*.png", "eval.bins": "generated/**/*.png", "graph cache": "*.onnx"}
    for job in JOBS:
        if job.name in patterns:
            damaged(job, folder, patterns[job.name], rng, args.damages)
            print(f"{job.name}: {args.damages} damaged files noticed and made again", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
