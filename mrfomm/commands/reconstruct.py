"""Rebuild test clips from a few of their own frames: `python reconstruct.py --data data/vox --weights runs/vox-256`."""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mrfomm import bundled, video
from mrfomm.animation import array_to_images, batches, images_to_array, load_model
from mrfomm.commands.backends import BACKENDS, animator_maker
from mrfomm.config import FUSION_MODES
from mrfomm.data.clips import find_clips, open_clip
from mrfomm.data.sampling import reference_indices
from mrfomm.errors import UserError, run_command
from mrfomm.runtime import CONTEXTS, use_context

NAMED_REFERENCES = {"first": 1, "first-last": 2, "first-last-middle": 3}


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(prog="reconstruct.py", description=__doc__)
    add = parser.add_argument
    add(
        "--data", metavar="DIR", default=bundled.SAMPLE_DATA, help="data in FOMM's format, with test/ (the bundled set)"
    )
    add("--weights", metavar="CKPT", default=bundled.DEMO_MODEL, help="checkpoint or run folder (the bundled one)")
    add("--refs", default="first-last-middle", help="first, first-last, first-last-middle or a number K (%(default)s)")
    add("--fusion", choices=FUSION_MODES, help="how references are fused (as the weights were trained)")
    add("--output", metavar="DIR", default="reconstruction", help="frames and manifest.jsonl go there (%(default)s)")
    add("--context", choices=CONTEXTS, default="auto", help="where to compute (%(default)s)")
    add("--backend", choices=BACKENDS, default="auto", help="what runs the model (auto: onnx on a CPU, if installed)")
    add("--batch", type=int, default=4, metavar="N", help="driving frames per call of the network (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    count = number_of_references(args.refs)
    clips = find_clips(Path(args.data) / "test")
    model = load_model(args.weights, args.fusion)
    output = Path(args.output)
    if (output / "manifest.jsonl").exists():
        raise UserError(f"{output}: already holds a reconstruction; choose another --output")
    rows = []
    with use_context(args.context):
        make_animator = animator_maker(model, args.backend)
        for clip in tqdm(clips, unit="clip"):
            folder = output / "frames" / clip.name
            rows.append(reconstruct(clip, make_animator, model.config.image_size, count, args.batch, folder))
    write_manifest(output / "manifest.jsonl", rows)
    frames = sum(row["frames"] for row in rows)
    mean = np.average([row["l1"] for row in rows], weights=[row["frames"] for row in rows])
    print(f"L1D {mean:.4f} over {frames} frames of {len(rows)} clips, {count} references; frames in {output}")
    return 0


def number_of_references(text):
    """K of --refs."""
    if text in NAMED_REFERENCES:
        return NAMED_REFERENCES[text]
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--refs {text}: give first, first-last, first-last-middle or a number, at least 1")
    return int(text)


def reconstruct(clip, make_animator, size, count, batch, folder):
    """Rebuild every frame of a clip from ``count`` of its frames (paper, section 4): PNG frames and a manifest row."""
    frames = open_clip(clip)
    references = reference_indices(frames.length, count)
    animator = make_animator(images_to_array(frames.read(references, size)), batch)
    total = 0.0
    with video.open_sink(folder, video.FOLDER_FPS) as sink:
        for indices in batches(range(frames.length), batch):
            driving = images_to_array(frames.read(indices, size))
            prediction = animator.render(animator.keypoints(driving))
            total += float(np.abs(prediction.astype(np.float64) - driving).mean(axis=(1, 2, 3)).sum())
            for image in array_to_images(prediction):
                sink.write(image)
    return {
        "clip": clip.name,
        "source": str(clip.path),
        "references": [int(index) for index in references],
        "frames": frames.length,
        "l1": total / frames.length,
    }


def write_manifest(path, rows):
    """One JSON line a clip, written in one step."""
    aside = path.with_suffix(".partial")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    aside.replace(path)


def command():
    """The console command."""
    run_command(main)
