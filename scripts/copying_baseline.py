"""What copying costs: `python -m scripts.copying_baseline --data runs/heads/data` prints L1D of the test clips.

Every frame is "rebuilt" by the first frame, or by the closest (by L1) of the first, middle and last one: what a model
has to be better than. Means over frames, 95 % bootstrap intervals over clips.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from eval.results import bootstrap_interval
from mrfomm import bundled
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import command_parser, run_command
from mrfomm.reenactment.reconstruction import l1_distances


def copying(frames):
    """L1D of copying the first frame, and the closest of three, of a clip's frames uint8 [N,S,S,3]."""
    references = frames[reference_indices(len(frames), 3)]
    distances = np.stack([l1_distances(np.broadcast_to(one, frames.shape), frames) for one in references])  # [3,N]
    return distances[0].mean(), distances.min(axis=0).mean()


def main(arguments=None):
    """Run the command; returns its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--data", metavar="DIR", type=Path, default=bundled.SAMPLE_DATA, help="folder with test/ (the bundled clips)"
    )
    parser.add_argument("--size", type=int, default=64, help="side of the frames in pixels (64)")
    args = parser.parse_args(arguments)
    sources = [open_clip(clip) for clip in find_clips(args.data / "test")]
    counts = [source.length for source in sources]
    scores = [copying(source.read(range(source.length), args.size)) for source in tqdm(sources, unit="clip")]
    for name, values in zip(("the first frame", "the closest of three"), zip(*scores)):
        print(f"copying {name}: {bootstrap_interval(values, counts)}, {len(values)} clips")
    return 0


if __name__ == "__main__":
    run_command(main)
