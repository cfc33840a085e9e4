"""Cut raw videos into face clips: `python -m mrfomm.data.prepare RAW -o DATA`."""

import collections
import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from mrfomm.data.tracks import Chunk, find_chunks, split_by_time
from mrfomm.data.voxceleb import FPS, TEST_IDENTITIES, Utterance, read_utterances
from mrfomm.errors import UserError, check_is_file, command_parser, remedy, run_command
from mrfomm.media.crop import LIFT, MARGIN, Box, FaceFinder, crop, square_box
from mrfomm.media.images import fit
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.store import files_below, locked, sha256_of

DETAILS = """
The clips are fixed squares around one face: DATA/train and DATA/test hold IDENTITY#VIDEO#START#END.mp4, frames
START..END-1 of the raw video. The identity is the raw video's folder below RAW, or its own name. No identity is in both
sets; a single one is split by time instead, if it is long enough for two clips. Links are followed. A run that was
stopped goes on where it was when started again; a video that has changed since is cut anew.
"""
RAW_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
    *(".3gp", ".3g2", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".gif"),
)
STRIDE = 5  # every which frame the face is looked for in
MAX_GAP = 3 * STRIDE  # frames: two detections in a row may fail
VOXCELEB_MARGIN = 0.1  # FOMM's, for boxes of whole heads
MANIFEST = "manifest.jsonl"
_CLIP = re.compile(r"(train|test)/([^/#]+)#[^/#]+#(\d+)#(\d+)(\.mp4)?")  # a clip in the manifest


class RawVideo(NamedTuple):
    """A video to cut, the parts of its clips' names, and its utterances if their metadata is given."""

    path: Path
    identity: str
    name: str
    utterances: tuple[Utterance, ...] = ()

    def digest(self):
        """SHA-256 of what its clips are cut by: the file's contents, and the utterances."""
        check_is_file(self.path)
        try:
            contents = sha256_of(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: can't be read ({error.strerror}); {remedy(error)}") from error
        return hashlib.sha256(f"{contents} {self.utterances}".encode()).hexdigest()


class Done(NamedTuple):
    """What came of a video: the paths of its clips in DATA, and the digest of what they were cut from."""

    clips: tuple[str, ...]
    digest: str


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
    add(
        "--test-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the identities that test/ gets, or of a single one's frames (0.1)",
    )
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
    raws, left_out = find_raw_videos(args.raw, args.output)
    with locked(args.output, make=True):
        if args.vox_metadata:
            raws = match_utterances(raws, read_utterances(args.vox_metadata))
        identities = {shown.identity for raw in raws for shown in raw.utterances or (raw,)}
        done = open_manifest(args.output / MANIFEST, _settings(args, identities))
        identities |= {clip[2] for clip in _written(done)}
        test = choose_test_identities(identities, args.test_share, done)
        unreadable = prepare(raws, args, test, done)
        _name_removed(args, raws, done)
        _report(args, done, _summary(done, unreadable, left_out))
        _name_empty_sets(args, done, identities, test)
    return 0


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


def find_raw_videos(folder, output):
    """The videos below a folder, sorted, as RawVideo. The first folder on the way to a video is its identity.

    Returns:
        (list of RawVideo, Counter of the suffixes of all other files).

    Raises:
        UserError: no video, two whose clips would have the same names, or one that lies in ``output``.
    """
    named, left_out = {}, collections.Counter()
    for path in files_below(folder):
        if path.suffix.lower() not in RAW_SUFFIXES and os.path.exists(path):  # a link to nothing might be a video
            left_out[path.suffix.lower() or "no suffix"] += 1
            continue
        if Path(os.path.realpath(output)) in Path(os.path.realpath(path)).parents:
            raise UserError(f"{path}: lies in {output} by a link; take the link away or choose another --output")
        first, *rest = path.relative_to(folder).with_suffix("").parts
        raw = RawVideo(path, _plain(first), _plain("-".join(rest or [first])))
        other = named.setdefault((raw.identity, raw.name), raw)
        if other is not raw:
            raise UserError(f"{raw.path}: its clips would be named as those of {other.path.name}; rename one")
    if not named:
        raise UserError(f"{folder}: holds no video ({' '.join(RAW_SUFFIXES)}); give the folder of the raw videos")
    return list(named.values()), left_out


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
    """Read the record of earlier runs, or begin one: also where they had other settings, but didn't cut a clip.

    Its first line holds the settings, every further one a finished video and its clips; a video's last line counts.

    Returns:
        Dictionary: path of a finished video below RAW -> Done.

    Raises:
        UserError: the earlier runs had other settings, or it isn't such a record.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:  # the last line was being written when a run was killed
        os.truncate(path, len(whole.encode(errors="surrogateescape")))
    done, changed = _read_manifest(path, whole, settings) if whole else ({}, [])
    if not whole or (changed and not _written(done)):
        path.unlink(missing_ok=True)
        _append(path, settings)
        return {}
    if changed:
        raise UserError(f"{path.parent}: made with other settings ({', '.join(changed)}); choose another --output")
    return done


def _read_manifest(path, text, settings):
    """Dictionary of Done, and a list of texts that name the settings that were others."""
    try:
        earlier, *records = map(json.loads, text.splitlines())
        done = {record["video"]: Done(tuple(record["clips"]), record.get("digest")) for record in records}
        # of several people's videos, all but one's may be gone by now
        changed = [f"{key} was {earlier[key]}" for key in settings if earlier[key] not in (settings[key], "identity")]
        if not all(_written(done)):
            raise ValueError(path)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a record that this command wrote; choose another --output") from error
    return done, changed


def _written(done):
    """What :data:`_CLIP` finds in all clips."""
    return [_CLIP.fullmatch(clip) for video in done.values() for clip in video.clips]


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
    places = {clip.group(1, 2) for clip in _written(done)}
    train, test = ({identity for split, identity in places if split == name} for name in ("train", "test"))
    official = identities & TEST_IDENTITIES
    if official and official != identities:
        return test | official - train
    count = max(1, round(share * len(identities))) if share else 0
    return test | set(sorted(identities - train - test, key=_hash)[: max(0, count - len(test))])


def _hash(identity):
    return hashlib.sha256(identity.encode()).hexdigest()


def prepare(raws, args, test, done):
    """Cut the videos that aren't in ``done`` or have changed since, and enter them there and in the manifest.

    Returns:
        List of the videos that can't be read, as paths below RAW.
    """
    unreadable, find_face = [], FaceFinder()
    with tqdm(raws, unit="video") as progress:
        for raw in progress:
            key = _key(raw, args.raw)
            progress.set_postfix_str(key)
            earlier = done.pop(key, None)
            try:
                done[key] = _cut(raw, earlier, args, test, find_face, done)
            except UnreadableVideo as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                unreadable.append(key)
                if earlier:
                    done[key] = earlier
    return unreadable


def _cut(raw, earlier, args, test, find_face, done):
    """The Done of a video: ``earlier`` if that was cut from the same contents, else of a cut made now.

    Raises:
        UnreadableVideo: it can't be read, or is damaged.
    """
    with _unreadable_if_refused():
        digest = raw.digest()
        if earlier and earlier.digest == digest:
            return earlier
        source = open_frames(raw.path)
    cuts = plan_cuts(raw, source, args, test, find_face, done)
    if earlier:
        tqdm.write(f"{raw.path}: not known to be the file that its clips were cut from; cut anew", file=sys.stderr)
        for clip in earlier.clips:
            _remove(args.output / clip)
    write_cuts(source, cuts, args.size)
    now = Done(tuple(cut.target.relative_to(args.output).as_posix() for cut in cuts), digest)
    _append(args.output / MANIFEST, {"video": _key(raw, args.raw), **now._asdict()})
    return now


def _key(raw, folder):
    return raw.path.relative_to(folder).as_posix()


def plan_cuts(raw, source, args, test, find_face, done):
    """Find out what to cut from a raw video.

    Args:
        raw: RawVideo.
        source: its FrameSource.
        args: namespace of :func:`parse_arguments`.
        test: what :func:`choose_test_identities` returned.
        find_face: FaceFinder.
        done: dictionary of :func:`open_manifest`, without this video.

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
    for split, identity, chunk in _assign(usable, test, args, done):
        name = f"{identity}#{raw.name}#{chunk.start:06d}#{chunk.end:06d}" + ("" if args.lossless else ".mp4")
        box = square_box(chunk.region.square(), frame_shape, args.margin, lift=0 if raw.utterances else LIFT)
        cuts.append(Cut(args.output / split / name, chunk.start, chunk.end, box))
    return cuts


def _assign(found, test, args, done):
    """List of (split, identity, Chunk) for all (identity, Chunk)."""
    if test is not None:
        return [("test" if identity in test else "train", identity, chunk) for identity, chunk in found]
    chunks = [chunk for _, chunk in found]
    before = collections.Counter(train=0, test=0)  # frames
    for clip in _written(done):
        before[clip[1]] += int(clip[4]) - int(clip[3])
    frames = sum(before.values()) + sum(chunk.length for chunk in chunks)
    wanted = round(args.test_share * frames) - before["test"]
    if args.test_share and not before["test"]:
        wanted = max(wanted, args.min_frames)
    parts = zip(("train", "test"), split_by_time(chunks, wanted, args.min_frames, not before["train"]))
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
            yield number, face.region()


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


def _name_removed(args, raws, done):
    removed = sorted(key for key in done.keys() - {_key(raw, args.raw) for raw in raws} if done[key].clips)
    if removed:
        print(
            f"no longer in {args.raw}: {_names(removed)}; the clips cut from them earlier stay in {args.output}, "
            "remove those that you don't want",
            file=sys.stderr,
        )


def _summary(done, unreadable, left_out):
    """What came of the files, in a line."""
    cut = sum(bool(video.clips) for video in done.values())
    suffixes = ", ".join(suffix + (f" ({n})" if n > 1 else "") for suffix, n in left_out.most_common())
    counts = (
        (cut, "cut"),
        (len(done) - cut, "without a usable face"),
        (len(unreadable), f"unreadable: {_names(unreadable)}"),
    )
    parts = [f"{count} {what}" for count, what in counts if count]
    if left_out:
        parts.append(f"{_count(left_out.total(), 'file', 'files')} left out: {suffixes}")
    return "; ".join(parts)


def _report(args, done, summary):
    """Print what there is now."""
    clips = _present(done, args.output)
    if not clips:
        raise UserError(
            f"{args.raw}: no clip came out of it ({summary}); lower --min-frames or --min-face, or give other videos"
        )
    for split in ("train", "test"):
        people = [identity for part, identity in clips if part == split]
        identities = _count(len(set(people)), "identity", "identities")
        print(f"{split}: {_count(len(people), 'clip', 'clips')} of {identities}")
    print(f"videos: {summary}")


def _present(done, output):
    """(split, identity) of every clip that is still there."""
    return [clip.group(1, 2) for clip in _written(done) if (output / clip[0]).exists()]


def _name_empty_sets(args, done, identities, test):
    """Say why there is nothing in train/ or, if it was asked for, in test/."""
    present = {split for split, _ in _present(done, args.output)}
    for split in ("train", "test") if args.test_share else ("train",):
        if split in present:
            continue
        if test is None:
            why = f"there aren't twice --min-frames {args.min_frames} frames; give a longer video or another one"
        else:
            names = _names(sorted(identities & test if split == "test" else identities - test)) or "others"
            why = f"nothing could be cut of {names}; give other videos of them"
        print(f"no {split} set: {why}, or start anew with other options and another --output", file=sys.stderr)


def _names(names):
    """At most ten of them."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _count(number, one, several):
    return f"{number} {one if number == 1 else several}"


if __name__ == "__main__":
    run_command(main)
