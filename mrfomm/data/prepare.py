"""Cut raw videos into face clips: `python -m mrfomm.data.prepare RAW -o DATA`."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple, Tuple

from tqdm import tqdm

from mrfomm.crop import LIFT, MARGIN, Box, FaceFinder, crop, square_box
from mrfomm.data.tracks import Chunk, Region, find_chunks, split_by_time
from mrfomm.data.voxceleb import FPS, TEST_IDENTITIES, Utterance, read_utterances
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.files import files_below, locked
from mrfomm.video import fit, open_frames, open_sink

DETAILS = """
The clips are fixed squares around one face: DATA/train and DATA/test hold IDENTITY#VIDEO#START#END.mp4, frames
START..END-1 of the raw video. The identity is the raw video's folder below RAW, or its own name. No identity is in both
sets; a single one is split by time instead. A run that was stopped goes on where it was when started again.
"""
RAW_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg")
STRIDE = 5  # every which frame the face is looked for in
MAX_GAP = 3 * STRIDE  # frames: two detections in a row may fail
VOXCELEB_MARGIN = 0.1  # FOMM's, for boxes of whole heads
MANIFEST = "manifest.jsonl"


class RawVideo(NamedTuple):
    """A video to cut, the parts of its clips' names, and its utterances if their metadata is given."""

    path: Path
    identity: str
    name: str
    utterances: Tuple[Utterance, ...] = ()


class Cut(NamedTuple):
    """A clip to write: frames start..end-1, cut to a box."""

    target: Path
    start: int
    end: int
    box: Box


class UnreadableVideo(UserError):  # noqa: N818 - named as what it tells
    """A raw video that is skipped. Errors in writing are none: they end the run."""


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] -o DATA RAW", epilog=DETAILS)
    add = parser.add_argument
    add("raw", metavar="RAW", type=Path, help=f"folder of videos ({' '.join(RAW_SUFFIXES)}) or of folders of them")
    add("-o", "--output", metavar="DATA", type=Path, required=True, help="folder for train/ and test/")
    add("--size", type=int, default=256, help="side of the clips in pixels, even (256)")
    add("--margin", type=float, help=f"margin around the face, as a share of it ({MARGIN}; VoxCeleb {VOXCELEB_MARGIN})")
    add("--test-share", type=float, default=0.1, metavar="SHARE", help="share of the identities that test/ gets (0.1)")
    add("--min-frames", type=int, default=64, metavar="N", help="leave out clips of fewer frames (64)")
    add(
        "--min-face",
        type=int,
        metavar="PIXELS",
        help="leave out smaller faces (a quarter of --size; VoxCeleb: --size)",
    )
    add("--lossless", action="store_true", help="folders of PNG: quick to load, ten times larger")
    add(
        "--vox-metadata",
        metavar="DIR",
        type=Path,
        help="VoxCeleb's txt files: cut their utterances out of RAW/YOUTUBE_ID.mp4 or RAW/ID/YOUTUBE_ID.mp4",
    )
    args = parser.parse_args(arguments)
    if args.margin is None:
        args.margin = VOXCELEB_MARGIN if args.vox_metadata else MARGIN
    if args.min_face is None:
        args.min_face = args.size if args.vox_metadata else args.size // 4
    return args


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    _check(args)
    raws = find_raw_videos(args.raw)
    if args.vox_metadata:
        raws = match_utterances(raws, read_utterances(args.vox_metadata))
    identities = {shown.identity for raw in raws for shown in raw.utterances or (raw,)}
    with locked(args.output, make=True):
        done = open_manifest(args.output / MANIFEST, _settings(args, identities))
        test = choose_test_identities(identities, args.test_share, done)
        return _report(args, done, skipped=prepare(raws, args, test, done))


def _check(args):
    for option, fine, needed in (
        ("--size", args.size >= 16 and args.size % 2 == 0, "an even number from 16"),
        ("--margin", 0 <= args.margin <= 2, "a number in 0..2"),
        ("--test-share", 0 <= args.test_share < 1, "a number from 0 to below 1"),
        ("--min-frames", args.min_frames >= 1, "a positive number"),
        ("--min-face", args.min_face >= 1, "a positive number"),
    ):
        if not fine:
            raise UserError(f"{option}: give {needed}")
    if not args.raw.is_dir():
        raise UserError(f"{args.raw}: no such folder; give the folder of the raw videos")
    output = Path(os.path.realpath(args.output))
    if Path(os.path.realpath(args.raw)) in (output, *output.parents):
        raise UserError(f"{args.output}: lies in the folder of the raw videos; choose another --output")


def find_raw_videos(folder):
    """The videos below a folder, sorted, as RawVideo. The first folder on the way to a video is its identity.

    Raises:
        UserError: no video, or two whose clips would have the same names.
    """
    paths = [path.relative_to(folder) for path in files_below(folder) if path.suffix.lower() in RAW_SUFFIXES]
    named = {}
    for path in sorted(path for path in paths if not any(part.startswith(".") for part in path.parts)):
        first, *rest = path.with_suffix("").parts
        raw = RawVideo(folder / path, _plain(first), _plain("-".join(rest or [first])))
        other = named.setdefault((raw.identity, raw.name), raw)
        if other is not raw:
            raise UserError(f"{raw.path}: its clips would be named as those of {other.path.name}; rename one")
    if not named:
        raise UserError(f"{folder}: holds no video ({' '.join(RAW_SUFFIXES)}); give the folder of the raw videos")
    return list(named.values())


def _plain(name):
    """A part of a clip's name, without what separates parts, begins a suffix or leads to another folder."""
    return re.sub("[#./]", "_", name)


def match_utterances(raws, utterances):
    """The raw videos that have utterances, with them. A video in a folder takes those of its identity only.

    Raises:
        UserError: there is none.
    """
    by_video = {}
    for utterance in utterances:
        plain = utterance._replace(identity=_plain(utterance.identity))
        by_video.setdefault(utterance.video, []).append(plain)
    matched = []
    for raw in raws:
        in_folder = raw.identity != raw.name
        own = (u for u in by_video.get(raw.path.stem, ()) if not in_folder or u.identity == raw.identity)
        matched.append(raw._replace(name=_plain(raw.path.stem), utterances=tuple(own)))
    matched = [raw for raw in matched if raw.utterances]
    found = sum(len(raw.utterances) for raw in matched)
    print(f"{found} of {len(utterances)} utterances have a video, {len(matched)} videos in all", file=sys.stderr)
    if not matched:
        raise UserError("no video is named as in the metadata; name them RAW/YOUTUBE_ID.mp4")
    return matched


def _settings(args, identities):
    """What the clips depend on: the same in all runs into one folder."""
    names = ("size", "margin", "test_share", "min_frames", "min_face", "lossless")
    split = "identity" if len(identities) > 1 else "time"
    boxes = "metadata" if args.vox_metadata else "faces"
    return {**{name: getattr(args, name) for name in names}, "split": split, "boxes": boxes}


def open_manifest(path, settings):
    """Read the record of earlier runs, or begin one.

    Its first line holds the settings, every further one a finished video and its clips.

    Returns:
        Dictionary: path of a finished video below RAW -> list of its clips, such as "train/id1#a#000000#000064.mp4".

    Raises:
        UserError: the earlier runs had other settings; the record can't be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the last line was being written when a run was killed
            os.truncate(path, len(whole.encode(errors="surrogateescape")))
        if not whole:
            _append(path, settings)
            return {}
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror}); choose another --output") from error
    try:
        earlier, *records = map(json.loads, whole.splitlines())
        done = {record["video"]: list(record["clips"]) for record in records}
        changed = [f"{key} was {earlier[key]}" for key in settings if earlier[key] != settings[key]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a record that this command wrote; choose another --output") from error
    if changed:
        raise UserError(f"{path.parent}: made with other settings ({', '.join(changed)}); choose another --output")
    return done


def _append(path, record):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def choose_test_identities(identities, share, done):
    """The identities whose clips go to test/; those of earlier runs stay where they are.

    VoxCeleb1's official test speakers if there are some, else the ``share`` (at least one) with the smallest
    hashes. None for a single identity: it is split by time.
    """
    if len(identities) == 1:
        return None
    places = {tuple(re.split("[/#]", clip)[:2]) for clips in done.values() for clip in clips}
    train, test = ({identity for split, identity in places if split == name} for name in ("train", "test"))
    official = identities & TEST_IDENTITIES
    if official and official != identities:
        return test | official - train
    count = max(1, round(share * len(identities))) if share else 0
    return test | set(sorted(identities - train - test, key=_hash)[: max(0, count - len(test))])


def _hash(identity):
    return hashlib.sha256(identity.encode()).hexdigest()


def prepare(raws, args, test, done):
    """Cut the videos that aren't in ``done``, and enter them there and in the manifest.

    Returns:
        Number of videos skipped because they can't be read.
    """
    skipped, find_face = 0, FaceFinder()
    with tqdm(raws, unit="video") as progress:
        for raw in progress:
            key = raw.path.relative_to(args.raw).as_posix()
            progress.set_postfix_str(key)
            if key in done:
                continue
            try:
                with _unreadable_if_refused():
                    source = open_frames(raw.path)
                cuts = plan_cuts(raw, source, args, test, find_face)
                write_cuts(source, cuts, args.size)
            except UnreadableVideo as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                skipped += 1
                continue
            done[key] = [cut.target.relative_to(args.output).as_posix() for cut in cuts]
            _append(args.output / MANIFEST, {"video": key, "clips": done[key]})
    return skipped


def plan_cuts(raw, source, args, test, find_face):
    """Find out what to cut from a raw video.

    Args:
        raw: RawVideo.
        source: its FrameSource.
        args: namespace of :func:`parse_arguments`.
        test: what :func:`choose_test_identities` returned.
        find_face: FaceFinder.

    Returns:
        List of Cut.

    Raises:
        UnreadableVideo: the video is damaged.
    """
    with _unreadable_if_refused():
        frame_shape = next(iter(source)).shape
    if raw.utterances:
        found = [(u.identity, chunk) for u in raw.utterances for chunk in spoken_chunks(u, frame_shape, source.fps)]
    else:
        chunks = find_chunks(face_track(source, find_face, args.min_face), MAX_GAP)
        found = [(raw.identity, chunk) for chunk in chunks]
    usable = [
        (identity, chunk)
        for identity, chunk in found
        if chunk.length >= args.min_frames and chunk.region.square().size >= args.min_face
    ]
    cuts = []
    for split, identity, chunk in _assign(usable, test, args.test_share):
        if chunk.length >= args.min_frames:  # it may have been cut in two by time
            name = f"{identity}#{raw.name}#{chunk.start:06d}#{chunk.end:06d}" + ("" if args.lossless else ".mp4")
            box = square_box(chunk.region.square(), frame_shape, args.margin, lift=0 if raw.utterances else LIFT)
            cuts.append(Cut(args.output / split / name, chunk.start, chunk.end, box))
    return cuts


def _assign(found, test, share):
    """List of (split, identity, Chunk) for all (identity, Chunk)."""
    if test is not None:
        return [("test" if identity in test else "train", identity, chunk) for identity, chunk in found]
    parts = zip(("train", "test"), split_by_time([chunk for _, chunk in found], share))
    return [(split, found[0][0], chunk) for split, chunks in parts for chunk in chunks]


def _read(source, doing):
    """Yield the frames of a FrameSource, with a progress bar."""
    with _unreadable_if_refused():
        yield from tqdm(source, desc=doing, total=source.count_hint, unit="frame", leave=False)


@contextlib.contextmanager
def _unreadable_if_refused():
    try:
        yield
    except UserError as error:
        raise UnreadableVideo(str(error)) from error


def face_track(source, find_face, min_face):
    """Yield (frame number, Region) of every STRIDE-th frame that shows a face of at least ``min_face`` pixels."""
    for number, frame in enumerate(_read(source, "finding faces")):
        face = find_face(frame) if number % STRIDE == 0 else None
        if face and face.size >= min_face:
            yield number, Region(face.x, face.y, face.x + face.size, face.y + face.size)


def spoken_chunks(utterance, frame_shape, fps):
    """Yield the Chunks of an Utterance, in frames and pixels of a video of ``frame_shape`` and ``fps``."""
    for chunk in find_chunks(utterance.track, MAX_GAP):
        # frame i of the video is shown at i / fps seconds
        start, end = (math.ceil(number * fps / FPS - 1e-6) for number in (chunk.start, chunk.end))
        yield Chunk(start, end, utterance.pixels(chunk.region, frame_shape))


def write_cuts(source, cuts, size):
    """Write the clips of a video in one pass over it: all of them or none. They may overlap in time.

    Args:
        source: FrameSource of the video.
        cuts: list of Cut.
        size: side of the clips.

    Raises:
        UnreadableVideo: the video is damaged, or ends before a cut does.
        UserError: a clip can't be written.
    """
    try:
        _write_in_one_pass(source, cuts, size)
    except UserError:
        for cut in cuts:
            _remove(cut.target)
        raise


def _write_in_one_pass(source, cuts, size):
    if not cuts:
        return
    last = max(cut.end for cut in cuts) - 1
    with contextlib.ExitStack() as stack:
        running = {}
        for number, frame in enumerate(_read(source, "cutting")):
            for cut in (cut for cut in cuts if cut.start == number):
                finishing = stack.enter_context(contextlib.ExitStack())
                running[cut] = finishing, finishing.enter_context(open_sink(cut.target, source.fps))
            for cut, (finishing, sink) in list(running.items()):
                sink.write(fit(crop(frame, cut.box), size))
                if number == cut.end - 1:
                    finishing.close()
                    del running[cut]
            if number == last:
                break
        else:
            raise UnreadableVideo(f"{source.path}: ends before frame {last} of the metadata; get the whole video")


def _remove(target):
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _report(args, done, skipped):
    """Print what there is now. Returns the exit code."""
    clips = [clip for clips in done.values() for clip in clips]
    if not clips:
        raise UserError(
            f"{args.raw}: no clip came out of it ({skipped} videos can't be read); "
            "lower --min-frames or --min-face, or give other videos"
        )
    for split in ("train", "test"):
        names = [clip.split("/")[1] for clip in clips if clip.startswith(split)]
        identities = {name.split("#")[0] for name in names}
        print(f"{split}: {len(names)} clips of {len(identities)} identities")
    empty = sum(not clips for clips in done.values())
    print(f"videos: {len(done)} done, {empty} of them without a usable face; {skipped} skipped as unreadable")
    return 0


if __name__ == "__main__":
    run_command(main)
