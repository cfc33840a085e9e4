"""Cut raw videos into face clips: `python -m mrfomm.data.prepare RAW -o DATA`."""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from mrfomm.data.preparing.cutting import Cutter, choose_test_identities
from mrfomm.data.preparing.manifest import Manifest, Settings
from mrfomm.data.preparing.raw import RAW_SUFFIXES, RawVideo, UnreadableVideo, find_raw_videos, match_utterances
from mrfomm.data.preparing.voxceleb import read_utterances
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.crop import MARGIN, FaceFinder
from mrfomm.store import locked

DETAILS = """
The clips are fixed squares around one face: DATA/train and DATA/test hold IDENTITY#VIDEO#START#END.mp4, frames
START..END-1 of the raw video. The identity is the raw video's folder below RAW, or its own name. No identity is in both
sets; a single one is split by time instead, if it is long enough for two clips. Links are followed. A run that was
stopped goes on where it was when started again; a video that has changed since is cut again.
"""
VOXCELEB_MARGIN = 0.1  # FOMM's, for boxes of whole heads


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] -o DATA RAW", epilog=DETAILS)
    add = parser.add_argument
    add("raw", metavar="RAW", type=Path, help=f"folder of videos ({' '.join(RAW_SUFFIXES)}) or of folders of them")
    add("-o", "--output", metavar="DATA", type=Path, required=True, help="folder for train/ and test/")
    add("--size", type=int, default=256, help="side of the clips in pixels, even (256)")
    add("--margin", type=float, help=f"margin around the face, as a share of it ({MARGIN}; VoxCeleb {VOXCELEB_MARGIN})")
    share = "share of the identities that test/ gets, or of a single one's frames (0.1)"
    add("--test-share", type=float, default=0.1, metavar="SHARE", help=share)
    add("--min-frames", type=int, default=64, metavar="N", help="leave out clips of fewer frames (64)")
    smallest = "leave out smaller faces (a quarter of --size; VoxCeleb: --size)"
    add("--min-face", type=int, metavar="PIXELS", help=smallest)
    add("--lossless", action="store_true", help="folders of PNG: quick to load, ten times larger")
    metadata = "VoxCeleb's txt files: cut their utterances out of RAW/YOUTUBE_ID.mp4 or RAW/ID/YOUTUBE_ID.mp4"
    add("--vox-metadata", metavar="DIR", type=Path, help=metadata)
    args = parser.parse_args(arguments)
    if args.margin is None:
        args.margin = VOXCELEB_MARGIN if args.vox_metadata else MARGIN
    if args.min_face is None:
        args.min_face = args.size if args.vox_metadata else args.size // 4
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    _check(args)
    raws, left_out = find_raw_videos(args.raw, args.output)
    with locked(args.output, make=True):
        if args.vox_metadata:
            raws = match_utterances(raws, read_utterances(args.vox_metadata))
        identities = {shown.identity for raw in raws for shown in raw.utterances or (raw,)}
        settings = _settings(args, len(identities) > 1)
        manifest = Manifest(args.output, settings)
        identities |= {clip["identity"] for clip in manifest.clips()}
        test = choose_test_identities(identities, args.test_share, manifest)
        unreadable = prepare(raws, Cutter(settings, manifest, test, FaceFinder()))
        _name_removed(args.raw, raws, manifest)
        present = [clip.group(1, 2) for clip in manifest.clips() if (args.output / clip[0]).exists()]
        summary = _summary(manifest, unreadable, left_out)
        if not present:
            remedy = "lower --min-frames or --min-face, or give other videos"
            raise UserError(f"{args.raw}: no clip came out of it ({summary}); {remedy}")
        for split in ("train", "test"):
            people = [identity for part, identity in present if part == split]
            of = _count(len(set(people)), "identity", "identities")
            print(f"{split}: {_count(len(people), 'clip', 'clips')} of {of}")
            if not people and (split == "train" or args.test_share):
                _explain_empty(split, args.min_frames, identities, test)
        print(f"videos: {summary}")
    return 0


def _check(args: argparse.Namespace) -> None:
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


def _settings(args: argparse.Namespace, are_several: bool) -> Settings:
    split, boxes = "identity" if are_several else "time", "metadata" if args.vox_metadata else "faces"
    given = {name: getattr(args, name) for name in Settings._fields if name in args}
    return Settings(**given, split=split, boxes=boxes)


def prepare(raws: Iterable[RawVideo], cutter: Cutter) -> list[str]:
    """Cut the videos that are new or have changed; returns those that can't be read, as paths below RAW."""
    unreadable = []
    with tqdm(raws, unit="video") as progress:
        for raw in progress:
            with contextlib.suppress(OSError):  # the cutter tells what is wrong with it
                progress.set_postfix_str(f"{raw.key}, {raw.path.stat().st_size / 1e6:.0f} MB")
            try:
                cutter.cut(raw)
            except UnreadableVideo as error:
                tqdm.write(f"skipped: {error}", file=sys.stderr)
                unreadable.append(raw.key)
    return unreadable


def _name_removed(folder: Path, raws: Iterable[RawVideo], manifest: Manifest) -> None:
    gone = manifest.done.keys() - {raw.key for raw in raws}
    if removed := sorted(key for key in gone if manifest.done[key].clips):
        stay = f"the clips cut from them earlier stay in {manifest.folder}, remove those that you don't want"
        print(f"no longer in {folder}: {_names(removed)}; {stay}", file=sys.stderr)


def _summary(manifest: Manifest, unreadable: list[str], left_out: Counter[str]) -> str:
    """What came of the files, in a line."""
    cut = sum(bool(video.clips) for video in manifest.done.values())
    suffixes = ", ".join(suffix + (f" ({n})" if n > 1 else "") for suffix, n in left_out.most_common())
    counts = (
        (cut, f"{cut} cut"),
        (len(manifest.done) - cut, f"{len(manifest.done) - cut} without a usable face"),
        (len(unreadable), f"{len(unreadable)} unreadable: {_names(unreadable)}"),
        (left_out.total(), f"{_count(left_out.total(), 'file', 'files')} left out: {suffixes}"),
    )
    return "; ".join(text for number, text in counts if number)


def _explain_empty(split: str, min_frames: int, identities: set[str], test: set[str] | None) -> None:
    if test is None:
        why = f"there aren't twice --min-frames {min_frames} frames; give a longer video or another one"
    else:
        names = _names(sorted(identities & test if split == "test" else identities - test)) or "others"
        why = f"nothing could be cut of {names}; give other videos of them"
    print(f"no {split} set: {why}, or start over with other options and another --output", file=sys.stderr)


def _names(names: list[str]) -> str:
    """At most ten of them."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


if __name__ == "__main__":
    run_command(main)
