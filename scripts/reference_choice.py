"""References chosen from a clip against evenly spaced ones: `python -m scripts.reference_choice -o choice`.

Chosen are those of ``--refs CLIP --count K`` (``mrfomm.reenactment.references``); evenly spaced the first frame, the
last and those between. Two questions: L1D of test clips, every frame rebuilt from K of its own; and the score of
``python -m eval.bins`` where the K references of a pattern come from all its sequences, played one after the other, and
relative motion starts as animate.py's does, at the closest poses. Prints tables; the frames of the second stay in the
output folder.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.bins.folders import score_folders
from eval.bins.metric import make_axis
from eval.bins.tables import difference_table, score_table
from eval.labels import KINDS, pairs_of, pattern_folders, read_patterns
from eval.lpips import load_lpips
from eval.results import bootstrap_interval, markdown_table
from mrfomm import bundled
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import command_parser, run_command
from mrfomm.media.reading import FrameSource
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.backends import open_engine
from mrfomm.reenactment.reconstruction import rebuild
from mrfomm.reenactment.reenactor import Reenactor
from mrfomm.reenactment.references import FromClip

WAYS = ("evenly spaced", "chosen")
BATCH = 8


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--weights", metavar="CKPT", default=bundled.MODEL, help="checkpoint or run folder (the bundled one)")
    add("--data", metavar="DIR", type=Path, default=bundled.SAMPLE_DATA, help="clips for L1D, in test/ (bundled)")
    add("--counts", metavar="K", type=int, nargs="*", default=[1, 2, 3, 5], help="numbers of references (%(default)s)")
    add("--bins", metavar="DIR", default=bundled.BENCHMARK, help="recordings with angles, for the bins (bundled)")
    add("--bins-count", metavar="K", type=int, default=3, help="references of a pattern, 0 for no bins (%(default)s)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="sequences that drive in the bins (%(default)s)")
    add("-o", "--output", metavar="DIR", type=Path, default="reference_choice", help="folder for frames (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    engine = open_engine(args.weights)
    if args.counts:
        clips = [open_clip(clip) for clip in find_clips(args.data / "test")]
        print(distance_table(engine, clips, args.counts), flush=True)
    if args.bins_count:
        patterns = read_patterns(tqdm(pattern_folders(args.bins), desc="checking recordings", unit="pattern"))
        made = {one.name: reenactors(engine, whole(one, engine.size), args.bins_count) for one in patterns}
        patterns = [one._replace(sequences={kind: one.sequences[kind] for kind in args.kinds}) for one in patterns]
        generate_all(made, patterns, args.output)
        roots = {way: args.output / way for way in WAYS}
        pairs = score_folders(load_lpips(bundled.LPIPS_ALEXNET), make_axis(2, 60), patterns, roots)
        print(f"{args.bins_count} references\n\n{score_table(pairs, WAYS, 'lpips', with_paper=False)}")
        print(difference_table(pairs, WAYS))
    return 0


def reenactors(engine, frames, count):
    """The Reenactor of each of WAYS, with ``count`` of the frames uint8 [N,S,S,3]."""
    source = FrameSource("clip", 25, len(frames), False, lambda: iter(frames))
    references = frames[reference_indices(len(frames), count)], FromClip(source, count)
    return [Reenactor(engine, each, batch=BATCH) for each in references]


def distance_table(engine, clips, counts):
    """L1D for each number of references, means over clips with intervals, and of how many clips chosen ones win."""
    rows = []
    for count in counts:
        distances = []
        for clip in tqdm(clips, desc=f"{count} references", unit="clip"):
            frames = clip.read(range(clip.length), engine.size)
            distances.append([rebuild([one], frames)[1].mean() for one in reenactors(engine, frames, count)])
        even, chosen = np.transpose(distances)
        won = f"{int((chosen < even).sum())} of {len(clips)}"
        rows.append([str(count), *map(bootstrap_interval, (even, chosen, chosen - even)), won])
    return markdown_table(["references", *WAYS, "difference", "clips won"], rows)


def generate_all(made, patterns, output):
    """Write what each way makes of every pair, as ``WAY/REFERENCE/DRIVING/KIND``; made: Reenactors of each pattern."""
    jobs = [(pattern, *pair) for pattern in patterns for pair in pairs_of(pattern, patterns)]
    for pattern, driving, kind in tqdm(jobs, desc="generating", unit="sequence"):
        content = driving.sequences[kind].content.frames
        frames = content.read(range(content.length), made[pattern.name][0].size)
        for way, reenactor in zip(WAYS, made[pattern.name]):
            with open_sink(output / way / pattern.name / driving.name / kind, 25) as sink:
                for image in reenactor.animate(frames):
                    sink.write(image)


def whole(pattern, size):
    """All frames of a pattern's sequences, one sequence after the other, uint8 [N,S,S,3]."""
    contents = [sequence.content.frames for sequence in pattern.sequences.values()]
    return np.concatenate([content.read(range(content.length), size) for content in contents])


if __name__ == "__main__":
    run_command(main)
