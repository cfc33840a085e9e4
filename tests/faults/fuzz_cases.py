"""The fuzzer's cases: healthy files of every kind, and commands on damaged copies of them.

A case is drawn from (seed, number) and made in a sandbox of its own: ``in/`` holds what the command reads, ``out/`` is
where it may write. Commands run in the sandbox, so that all paths are relative.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import mutations
import numpy as np
import tiny
import yaml
from PIL import Image

from mrfomm import bundled
from mrfomm.commands import reconstruct, train
from mrfomm.config import config_to_yaml
from mrfomm.convert.name_map import nnabla_examples_names
from mrfomm.media.writing import open_sink
from mrfomm.model.checkpoint import _fingerprint, write_h5

GOLDEN = Path(__file__).parent.parent / "golden"
TRAINING = {"epochs": 1, "milestones": [], "checkpoint_every": 1, "validate_every": 1, "picture_every": 1}
ANGLES = {"yaw": [(-30, 0, 0), (0, 0, 0), (30, 0, 0)], "pitch": [(0, -12, 1), (0, 1, 0)]}
IMAGES = ("png", "jpg", "gif", "webp", "bmp", "tiff")
VIDEOS = ("mp4", "mov", "mkv", "webm", "avi", "gif")


class Case(NamedTuple):
    """kind: of input; command: name; arguments: its command line; what: was done to the input."""

    kind: str
    command: str
    arguments: tuple[str, ...]
    what: str


# Healthy files


def make_seeds(folder):
    """Healthy files of every kind in a folder. Uses nnabla and ffmpeg: run it in a process of its own."""
    (folder / "images").mkdir(parents=True)
    whole = tiny.config(train=TRAINING, data={"num_repeats": 1})
    tiny.checkpoint(folder / "weights", train=TRAINING, data={"num_repeats": 1})
    (folder / "config.yaml").write_text(config_to_yaml(whole), encoding="utf-8")
    picture = Image.fromarray(tiny.frames(1, size=48)[0])
    for suffix in IMAGES:
        picture.save(folder / "images" / f"a.{suffix}")
    _make_clips(folder)
    _make_recordings(folder / "recordings")
    copies = ["--data", str(folder / "data"), "--weights", str(folder / "weights"), "--backend", "nnabla"]
    reconstruct.main([*copies, "--output", str(folder / "rebuilt")])
    config = ["--config", str(folder / "config.yaml"), "--data", str(folder / "data"), "--context", "cpu"]
    train.main([*config, "--output", str(folder / "run")])
    for name in ("checkpoint.pth.tar", "checkpoint-zip.pth.tar"):
        shutil.copyfile(GOLDEN / "fomm-tiny" / name, folder / name)
    shutil.copyfile(GOLDEN / "fomm-tiny" / "config.yaml", folder / "upstream.yaml")
    model = whole.model
    ours = {name: value.d for name, value in tiny.random_tree(model).all().items() if not name.startswith("fusion/")}
    names = nnabla_examples_names(ours)
    write_h5(folder / "foreign.h5", {names[name]: value for name, value in ours.items()})


def _make_clips(folder):
    frames = tiny.frames(6, size=48)
    with open_sink(folder / "silent.mp4", 12) as sink:
        for frame in frames:
            sink.write(frame)
    (folder / "videos").mkdir()
    for suffix in VIDEOS:
        encoding = {"webm": ["-c:v", "libvpx", "-c:a", "libvorbis"], "gif": ["-an"]}.get(suffix, ["-c:a", "aac"])
        sound = ["-f", "lavfi", "-t", "0.5", "-i", "sine=440"] if suffix != "gif" else []
        _ffmpeg("-i", folder / "silent.mp4", *sound, *encoding, folder / "videos" / f"a.{suffix}")
    for part in ("train", "test"):
        (folder / "data" / part).mkdir(parents=True)
        shutil.copyfile(folder / "silent.mp4", folder / "data" / part / "a#0.mp4")
        _write_frames(folder / "data" / part / "b#0", tiny.frames(4, seed=1))
    _write_frames(folder / "frames", tiny.frames(4, seed=2))


def _ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-fflags", "+bitexact", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _write_frames(folder, frames):
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")


def _make_recordings(folder):
    for number, name in enumerate(("ann_lamp", "bob_sun")):
        for kind, angles in ANGLES.items():
            _write_frames(folder / name / kind, tiny.frames(len(angles), size=48, seed=number))
            rows = [f"{i},{yaw},{pitch},{roll}" for i, (yaw, pitch, roll) in enumerate(angles)]
            (folder / name / f"{kind}.csv").write_text("\n".join(["frame,yaw,pitch,roll", *rows]))


# Cases


class Bench(NamedTuple):
    """What a case is made with. rng: its Generator; seeds: healthy files; sandbox: with in/ and out/."""

    rng: np.random.Generator
    seeds: Path
    sandbox: Path

    def take(self, name, target=None):
        """A copy of a healthy file or folder in in/; returns its path."""
        return mutations.copy(self.seeds / name, self.sandbox / "in" / (target or Path(name).name))

    def share(self, name):
        """A healthy file or folder that the case doesn't change, as an argument."""
        link = self.sandbox / "in" / f"good-{Path(name).name}"
        if not link.is_symlink():
            link.symlink_to(self.seeds / name)
        return self.relative(link)

    def relative(self, path):
        """A path as the command gets it."""
        return str(Path(path).relative_to(self.sandbox))

    def choose(self, items):
        """One of some items."""
        items = list(items)
        return items[self.rng.integers(len(items))]

    def spoil(self, path):
        """Damage a file's bytes, or put something else in its place; returns what was done."""
        draw = self.rng.random()
        if draw < 0.06:
            return mutations.no_file(self.rng, path)
        if draw < 0.12:
            other = self.choose(["images/a.png", "videos/a.mp4", "config.yaml", "foreign.h5", "checkpoint.pth.tar"])
            path.write_bytes((self.seeds / other).read_bytes())
            return f"is {other}"
        return mutations.damage(self.rng, path)


def make_case(seeds, sandbox, seed, number):
    """Make case ``number`` of a seed in a sandbox -> Case."""
    rng = np.random.default_rng([seed, number])
    for part in ("in", "out", "tmp", "home"):
        (sandbox / part).mkdir(parents=True)
    (sandbox / "out" / "earlier.txt").write_text("earlier")
    maker = MAKERS[rng.choice(len(MAKERS), p=np.array(WEIGHTS) / sum(WEIGHTS))]
    return maker(Bench(rng, seeds, sandbox))


def _animate(bench, kind, what, refs=None, driving=None, weights=None, options=()):
    output = bench.choose(["result.mp4", "result.mp4", "result.gif", "frames"])
    if "." in output and bench.rng.random() < 0.5:
        (bench.sandbox / "out" / output).write_text("earlier")
    if bench.rng.random() < 0.05:
        output = f"{bench.choose(mutations.NAMES)}{output[output.find('.') :] if '.' in output else ''}"
    arguments = [f"--refs={refs or bench.share('images/a.png')}", f"--driving={driving or bench.share('frames')}"]
    arguments += [f"--weights={weights or bench.share('weights')}", f"--output=out/{output}"]
    extra = bench.choose([(), (), ("--no-audio",), ("--side-by-side",), ("--masks=out/masks",), ("--adapt-scale",)])
    return Case(kind, "animate", (*arguments, "--backend=nnabla", "--context=cpu", *extra, *options), what)


def image(bench):
    """A picture as a reference, or as one of the driving frames."""
    draw = bench.rng.random()
    if draw < 0.12:
        path = mutations.image_bomb(bench.rng, bench.sandbox / "in")
        what = f"bomb {path.name}"
    elif draw < 0.18:
        path = bench.sandbox / "in" / "odd"
        path = mutations.odd_image(bench.rng, path)
        what = f"healthy but odd {path.suffix}"
    else:
        name = f"a.{bench.choose(IMAGES)}"
        path = bench.take(f"images/{name}")
        what = f"{path.suffix} {bench.spoil(path)}"
    if bench.rng.random() < 0.1 and (path.exists() or path.is_symlink()):
        path = mutations.odd_name(bench.rng, path)
        what += f", named {path.name!r}"
    if bench.rng.random() < 0.25 and (path.exists() or path.is_symlink()):
        folder = bench.take("frames")
        path.rename(folder / path.name)
        return _animate(bench, "image", f"frame: {what}", driving=bench.relative(folder))
    options = ("--crop",) if bench.rng.random() < 0.05 else ()
    return _animate(bench, "image", what, refs=bench.relative(path), options=options)


def clip(bench):
    """A video as the driving clip, as test data, as training data, or as a recording."""
    suffix = bench.choose([*VIDEOS, "mp4", "mp4"])
    if bench.rng.random() < 0.04:
        path = bench.sandbox / "in" / "bomb.gif"
        mutations.image_bomb(bench.rng, bench.sandbox / "in").rename(path)
        what = "gif bomb"
    else:
        path = bench.take(f"videos/a.{suffix}")
        if suffix in ("mp4", "mov") and bench.rng.random() < 0.35:
            path.write_bytes(mutations.absurd_box(bench.rng, path.read_bytes()))
            what = f"{suffix} absurd box"
        else:
            what = f"{suffix} {bench.spoil(path)}"
    if bench.rng.random() < 0.08 and (path.exists() or path.is_symlink()):
        path = mutations.odd_name(bench.rng, path)
        what += f", named {path.name!r}"
    there = path.exists() or path.is_symlink()
    draw = bench.rng.random()
    if draw < 0.55 or not there:
        return _animate(bench, "video", what, driving=bench.relative(path))
    if draw < 0.75:
        data = bench.take("data")
        path.rename(data / "test" / path.name)
        return _reconstruct(bench, "video", what, data=bench.relative(data))
    if draw < 0.85:
        data = bench.take("data")
        path.rename(data / "train" / path.name)
        return _train(bench, "video", what, data=bench.relative(data))
    folder = bench.take("recordings")
    shutil.rmtree(folder / "bob_sun" / "pitch")
    path.rename(folder / "bob_sun" / "pitch.mp4")
    rows = [f"{i},0,{2 * i},0" for i in range(6)]
    (folder / "bob_sun" / "pitch.csv").write_text("\n".join(["frame,yaw,pitch,roll", *rows]))
    return _bins(bench, "video", what, data=bench.relative(folder))


def _reconstruct(bench, kind, what, data=None, weights=None, output="out/rebuilt"):
    arguments = [f"--data={data or bench.share('data')}", f"--weights={weights or bench.share('weights')}"]
    pseudo = bench.choose([(), (), ("--pseudo",)])
    return Case(
        kind, "reconstruct", (*arguments, f"--output={output}", "--backend=nnabla", "--context=cpu", *pseudo), what
    )


def _train(bench, kind, what, config=None, data=None, options=()):
    arguments = [f"--config={config or bench.share('config.yaml')}", "--output=out/run", "--context=cpu"]
    data = [f"--data={data or bench.share('data')}"]
    return Case(kind, "train", (*arguments, *data, *options), what)


def _bins(bench, kind, what, data=None, options=()):
    fixed = ("--output=out/bins", "--context=cpu", "--backend=nnabla", "--bin-width=20", "--allow-missing-poses")
    arguments = (f"--data={data or bench.share('recordings')}", f"--weights={bench.share('weights')}")
    return Case(kind, "bins", (*arguments, *fixed, *options), what)


VALUES = (
    -1, 0, 1, 2, 3, 5, 7, 64, 0.3, 0.5, 1.5, 1e-300, 1e308, -2.5, float("inf"), float("nan"), 2**31, 2**63, -(2**63),
    10**30, 10**4000, True, False, None, "", "x", "a\0b", "..", "/dev/zero", "null", "1e400", "é🙂" * 50, "x" * 100_000,
    [], [1], [0], [None], [[1]], [1, "x"], [float("nan")], {}, {"a": 1}, {1: 2}, [0.5] * 3000, "2001-01-01", "1:30",
    b"\xff\0",
)  # fmt: skip

YAML_TEXTS = (
    "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghij", "bcdefghijk")),
    "a: &a {x: 1}\n" + "".join(f"b{i}: &b{i} {{<<: [{','.join(['*a'] * 9)}]}}\n" for i in range(9)),
    "model: &m {generator: *m}\n",
    "model: &m\n  generator: *m\n",
    "[" * 20_000,
    "{a: " * 3000 + "1" + "}" * 3000,
    "model: " + "[" * 500 + "]" * 500 + "\n",
    "- " * 5000 + "1",
    "model: !!python/object/apply:os.system ['touch pwned']\n",
    "!!python/object/new:os.system [touch pwned]\n",
    "train: !!binary aGVsbG8=\n",
    "train: {epochs: !!int 'x'}\n",
    "train: {epochs: 0b" + "1" * 20_000 + "}\n",
    "train: {epochs: " + "9" * 6000 + "}\n",
    "train: {epochs: 1:99999999999:99999999999}\n",
    "train: {learning_rate: !!float 'a'}\n",
    "train: {epochs: 2001-99-99}\n",
    "train: 2001-01-01T99:00:00Z\n",
    "model: !!set {a, b}\n",
    "model: !!omap [a: 1]\n",
    "? [1, 2]\n: 3\n",
    "? {a: 1}\n: 3\n",
    "null: 1\n",
    "1: 2\n",
    "~\n",
    "text\n",
    "model: {}\nmodel: {}\n",
    "---\na: 1\n---\nb: 2\n",
    "%YAML 9.9\n---\na: 1\n",
    "%TAG ! tag:x,2000:\n---\nmodel: !y 1\n",
    "parent: config.yaml\n",
    "parent: .\n",
    "parent: [1]\n",
    "parent: {a: 1}\n",
    "parent: 'a\\0b'\n",
    'parent: "a\\0b"\n',
    "parent: " + "x" * 5000 + "\n",
    "parent: /dev/zero\n",
    "parent: pipe\n",
    "data: {root: \"a\\0b\"}\n",
    "loss: {perceptual_network: vgg19, perceptual_weights: \"a\\0b\"}\n",
    "loss: {perceptual_network: vgg19, perceptual_weights: pipe}\n",
    "\t\tx: 1\n",
    "a: \"\\ud800\"\n",
    "a: \x07\n",
    "loss: {scales: .inf}\n",
)  # fmt: skip


def configuration(bench):
    """A YAML file for train.py or for the converter."""
    path = bench.take(bench.choose(["config.yaml"] * 9 + ["upstream.yaml"]), "config.yaml")
    draw = bench.rng.random()
    if draw < 0.35:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        what = ", ".join(_spoil_values(bench, values) for _ in range(bench.rng.integers(1, 3)))
        path.write_text(yaml.safe_dump(values, allow_unicode=bool(bench.rng.random() < 0.5)), encoding="utf-8")
    elif draw < 0.65:
        index = int(bench.rng.integers(len(YAML_TEXTS)))
        text = YAML_TEXTS[index]
        if "pipe" in text:
            mutations.os.mkfifo(path.parent / "pipe")
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        what = f"text {index}: {text[:40]!r}"
    elif draw < 0.72:
        encoding = bench.choose(["utf-16", "utf-32", "utf-8-sig", "latin-1"])
        path.write_bytes(f"# é\n{path.read_text(encoding='utf-8')}".encode(encoding))
        what = encoding
    else:
        what = bench.spoil(path)
    if bench.rng.random() < 0.08 and (path.exists() or path.is_symlink()):
        path = mutations.odd_name(bench.rng, path)
    if bench.rng.random() < 0.15:
        return _convert(
            bench, "yaml", what, bench.choose(["checkpoint.pth.tar", "foreign.h5"]), config=bench.relative(path)
        )
    return _train(bench, "yaml", what, config=bench.relative(path))


def _leaves(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))


def _spoil_values(bench, values):
    """Replace, delete or add a value somewhere in nested dictionaries; returns what was done."""
    *sections, name = bench.choose(_leaves(values))
    for section in sections:
        values = values[section]
    draw = bench.rng.random()
    if draw < 0.8:
        values[name] = bench.choose(VALUES)
        return f"{name} = {str(values[name])[:30]!r}"
    if draw < 0.9:
        del values[name]
        return f"without {name}"
    values[bench.choose(["x", 1, None, (1, 2), "é"])] = bench.choose(VALUES)
    return "another key"


def override(bench):
    """Texts for --set."""
    values = yaml.safe_load((bench.seeds / "config.yaml").read_text(encoding="utf-8"))
    pairs = []
    for _ in range(bench.rng.integers(1, 3)):
        key = ".".join(map(str, bench.choose(_leaves(values))))
        draw = bench.rng.random()
        if draw < 0.6:
            text = yaml.safe_dump(bench.choose(VALUES), default_flow_style=True).split("\n...")[0].strip()
            pairs.append(f"{key}={text}")
        elif draw < 0.8:
            pairs.append(f"{key}={bench.choose(YAML_TEXTS)}")
        else:
            pairs.append(
                bench.choose(["", "=", "x", "=1", "..=1", f"{key}.x=1", f".{key}=1", f"{key}=", "a" * 9999, "é=🙂"])
            )
    pairs = [pair.replace("\0", "") for pair in pairs]  # no command line can hold it
    return _train(
        bench, "set", "; ".join(pair[:50] for pair in pairs), options=tuple(f"--set={pair}" for pair in pairs)
    )


CELLS = (
    "",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "-0",
    "0x1",
    "１",
    "x",
    '"',
    "'",
    "1,5",
    " 1 ",
    "181",
    "1_0",
    "\0",
    "9" * 5000,
    "🙂",
)


def labels(bench):
    """CSV labels of the bin metric."""
    folder = bench.take("recordings")
    pattern = folder / "ann_lamp"
    if bench.rng.random() < 0.1:
        pattern = mutations.odd_name(bench.rng, pattern)
    path = pattern / bench.choose(["yaw.csv", "pitch.csv"])
    draw = bench.rng.random()
    if draw < 0.1:
        what = "as they are"
    elif draw < 0.5:
        rows = [line.split(",") for line in path.read_text().splitlines()]
        for _ in range(bench.rng.integers(1, 4)):
            row = bench.choose(rows)
            row[bench.rng.integers(len(row))] = bench.choose(CELLS)
        separator = bench.choose([",", ",", ",", ";", "\t"])
        end = bench.choose(["\n", "\r\n", "\r", "\n\n"])
        path.write_text(
            end.join(separator.join(row) for row in rows), newline="", encoding=bench.choose(["utf-8", "utf-16"])
        )
        what = "cells"
    elif draw < 0.6:
        huge = bench.choose(
            [
                "frame,yaw,pitch,roll\n" + "0,0,0,0\n" * 200_000,
                "frame,yaw,pitch,roll\n0,0,0," + "1" * 10**6,
                "," * 10**6,
            ]
        )
        path.write_text(huge)
        what = "huge"
    else:
        what = bench.spoil(path)
    options = bench.choose(
        [(), (), ("--bin-width=nan",), ("--range=1e308",), ("--bin-width=1e-9",), ("--pose-tolerance=inf",)]
    )
    return _bins(bench, "labels", what, data=bench.relative(folder), options=options)


def checkpoint(bench):
    """A checkpoint folder of ours; half of the time the checksums are made to fit what was changed."""
    folder = bench.take("weights")
    name = bench.choose(["parameters.h5", "parameters.h5", "config.yaml", "state.json"])
    what = f"{name}: {_spoil_checkpoint(bench, folder, name)}"
    if bench.rng.random() < 0.6:
        what += ", checksums fit" if _refresh(folder) else ""
    draw = bench.rng.random()
    weights = bench.relative(folder)
    if draw < 0.6:
        return _animate(bench, "checkpoint", what, weights=weights)
    if draw < 0.8:
        return _reconstruct(bench, "checkpoint", what, weights=weights)
    return _train(bench, "checkpoint", what, options=(f"--init={weights}",))


JSON_TEXTS = (
    "[" * 100_000,
    '{"a":' * 50_000,
    "null",
    "[]",
    "{}",
    '{"state": {}, "files": {}}',
    '{"state": [], "files": []}',
    '{"state": {"step": 1e999}, "files": {"../../../etc/passwd": {"size": 1, "sha256": "x"}}}',
    '{"state": {}, "files": {"config.yaml": 1, "parameters.h5": 2}}',
    '{"state": {}, "files": {"config.yaml": {"size": "x", "sha256": 0}, "parameters.h5": {}}}',
    '"' + "x" * 10**6 + '"',
    "1" * 10_000,
    "NaN",
    '{"\\ud800": "\\ud800"}',
)


def _spoil_checkpoint(bench, folder, name):
    path = folder / name
    draw = bench.rng.random()
    if name == "state.json" and draw < 0.5:
        path.write_text(bench.choose(JSON_TEXTS))
        return "other JSON"
    if name == "state.json" and draw < 0.8:
        record = json.loads(path.read_text())
        _spoil_values(bench, record)
        path.write_text(json.dumps(record, default=str, skipkeys=True))  # a tuple may have become a key
        return "other values"
    if name == "config.yaml" and draw < 0.5:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        what = _spoil_values(bench, values)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return what
    if name == "config.yaml" and draw < 0.7:
        text = bench.choose(YAML_TEXTS)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return repr(text[:40])
    if name == "parameters.h5" and draw < 0.15:
        return mutations.h5_bomb(bench.rng, path)
    if name == "parameters.h5" and draw < 0.45:
        return _spoil_arrays(bench, path)
    return bench.spoil(path)


def _spoil_arrays(bench, path):
    """Change one array of an HDF5 file of parameters, the file stays whole; returns what was done."""
    with mutations.h5py.File(path, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, mutations.h5py.Dataset) else None)
        name = bench.choose(names)
        array, what = (
            file[name][()],
            bench.choose(["nan", "inf", "huge", "tiny", "shape", "type", "gone", "zero", "extra"]),
        )
        del file[name]
        changed = {
            "nan": np.full(array.shape, np.nan, "f4"),
            "inf": np.full(array.shape, np.inf, "f4"),
            "huge": np.full(array.shape, 3e38, "f4"),
            "tiny": np.full(array.shape, 1e-42, "f4"),
            "shape": np.zeros((*array.shape, 2), "f4"),
            "type": array.astype(bench.choose(["f8", "i8", "u1", "f2", "c8", "S3"])),
            "zero": np.zeros_like(array),
            "extra": array,
        }
        if what in changed:
            file[name] = changed[what]
        if what == "extra":
            file[f"{name}é/🙂"] = array
    return f"{name} {what}"


def _refresh(folder):
    """Make state.json's sizes and checksums fit the files; returns whether it could be done."""
    path = folder / "state.json"
    try:
        record = json.loads(path.read_text())
        for name in record["files"]:
            if not (folder / name).is_file():
                return False
            record["files"][name] = _fingerprint(folder / name)
        path.write_text(json.dumps(record))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def foreign(bench):
    """A checkpoint of torch or nnabla-examples for the converter."""
    name = bench.choose(["checkpoint.pth.tar", "checkpoint-zip.pth.tar", "foreign.h5"])
    path = bench.take(name, f"other-{name}")
    draw = bench.rng.random()
    if name.endswith("h5") and draw < 0.3:
        what = mutations.h5_bomb(bench.rng, path)
    elif name.endswith("h5") and draw < 0.5:
        what = _spoil_arrays(bench, path)
    elif draw < 0.12:
        what = f"zip {mutations.zip_bomb(bench.rng, path)}"
    else:
        what = bench.spoil(path)
    if bench.rng.random() < 0.08 and (path.exists() or path.is_symlink()):
        path = mutations.odd_name(bench.rng, path)
    return _convert(bench, "torch and h5", f"{name} {what}", name, source=bench.relative(path))


def _convert(bench, kind, what, name, source=None, config=None):
    config = config or bench.share("config.yaml" if name == "foreign.h5" else "upstream.yaml")
    return Case(kind, "convert", ("-o=out/new", f"--config={config}", "--", source or bench.share(name)), what)


def arrays(bench):
    """An npz of LPIPS weights."""
    path = bench.sandbox / "in" / "lpips.npz"
    draw = bench.rng.random()
    if draw < 0.4:
        mutations.copy(bundled.LPIPS_ALEXNET, path)
        what = bench.spoil(path)
    elif draw < 0.6:
        what = mutations.zip_bomb(bench.rng, path)
    elif draw < 0.8:
        with mutations.zipfile.ZipFile(path, "w") as file:
            for entry in ("conv1/W.npy", "head1/w.npy"):
                file.writestr(entry, mutations.npy(bench.rng))
        what = "npy inside"
    else:
        with np.load(bundled.LPIPS_ALEXNET) as file:
            content = {name: file[name] for name in file.files}
        name = bench.choose(content)
        content[name] = bench.choose(
            [np.full_like(content[name], np.nan), np.zeros((2, 2)), np.array("x"), np.array(1 + 2j)]
        )
        np.savez(path, **content)
        what = f"{name} spoilt"
    option = f"--lpips-weights={bench.relative(path)}"
    if bench.rng.random() < 0.5:
        return _bins(bench, "npz", what, options=(option,))
    return _score(bench, "npz", what, options=(option,))


def _score(bench, kind, what, result=None, options=()):
    fixed = ("--landmarks=none", "--identity=none", "--context=cpu", "--output=out/scores")
    return Case(kind, "score", (*fixed, *options, result or bench.share("rebuilt")), what)


def manifest(bench):
    """The records of a reconstruction, to be scored, shown in a report, or continued."""
    inside = bench.rng.random() < 0.4  # reconstruct.py goes on in out/
    folder = mutations.copy(bench.seeds / "rebuilt", bench.sandbox / ("out" if inside else "in") / "rebuilt")
    path = folder / bench.choose(["manifest.jsonl", "manifest.jsonl", "settings.json"])
    draw = bench.rng.random()
    if draw < 0.55:
        records = [json.loads(path.read_text())] if path.suffix == ".json" else list(map(json.loads, path.open()))
        what = _spoil_records(bench, records)
        path.write_text("".join(json.dumps(record, default=str, skipkeys=True) + "\n" for record in records))
    elif draw < 0.7:
        path.write_text(bench.choose(JSON_TEXTS) + "\n")
        what = "other JSON"
    elif draw < 0.8:
        picture = bench.choose(sorted((folder / "frames").rglob("*.png")))
        what = f"picture {bench.spoil(picture)}"
    else:
        what = bench.spoil(path)
    what = f"{path.name} {what}"
    if inside:
        return _reconstruct(bench, "manifest", what, output=bench.relative(folder))
    if bench.rng.random() < 0.3:
        return Case("manifest", "report", ("--output=out/report.html", bench.relative(folder)), what)
    return _score(bench, "manifest", what, result=bench.relative(folder))


PATHS = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "/dev/zero",
    "frames",
    "a\0b",
    "x" * 5000,
    "",
    ".",
    5,
    None,
    ["x"],
    "\ud800",
)


def _spoil_records(bench, records):
    record = bench.choose(records)
    frames = record.get("frames")
    target = bench.choose([record, *frames]) if isinstance(frames, list) and frames else record
    target = bench.choose([target, *(value for value in target.values() if isinstance(value, dict))])
    if not target:
        return "as it was"
    key = bench.choose(target)
    if key in ("file", "source", "clip", "data"):
        target[key] = bench.choose(PATHS)
    else:
        target[key] = bench.choose([value for value in VALUES if not isinstance(value, bytes)])
    if isinstance(target[key], dict) and 1 in target[key]:
        target[key] = {"1": 2}
    if bench.rng.random() < 0.2:
        records += records
        return f"{key} = {str(target[key])[:30]!r}, everything twice"
    return f"{key} = {str(target[key])[:30]!r}"


def resume(bench):
    """A run folder for --resume."""
    folder = mutations.copy(bench.seeds / "run", bench.sandbox / "out" / "run")
    checkpoints = sorted(folder.glob("checkpoint-*"))
    hurt = checkpoints if bench.rng.random() < 0.3 else checkpoints[-1:]
    what = []
    for one in hurt:
        name = bench.choose(["state.json", "config.yaml", "parameters.h5", "solver_generator.h5"])
        if name.startswith("solver"):
            path = one / name
            done = bench.choose([_spoil_arrays, lambda bench, path: mutations.h5_bomb(bench.rng, path), _spoil_file])(
                bench, path
            )
            what.append(f"{name}: {done}")
        else:
            what.append(f"{name}: {_spoil_checkpoint(bench, one, name)}")
        if bench.rng.random() < 0.6:
            _refresh(one)
    if bench.rng.random() < 0.3:
        logs = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
        path = bench.choose(logs)
        what.append(f"{path.name}: {bench.spoil(path)}")
    data = bench.share("data")
    arguments = (f"--resume={bench.relative(folder)}", f"--data={data}", "--context=cpu", "--set=train.epochs=2")
    return Case("run folder", "train", arguments, "; ".join(what))


def _spoil_file(bench, path):
    return bench.spoil(path)


MAKERS: tuple[Callable, ...] = (
    image,
    clip,
    configuration,
    override,
    labels,
    checkpoint,
    foreign,
    arrays,
    manifest,
    resume,
)
WEIGHTS = (18, 20, 12, 4, 6, 13, 12, 3, 6, 6)
