"""Estimate the head's angles in a clip that has no labels: `python -m eval.pose CLIP -o yaw.csv`.

A rotation is fitted to a few landmarks and the same points of an average head (``HEAD``). The CSV
is a label file as ``eval/labels.py`` reads it, in degrees: yaw > 0 turns the face to image right, pitch > 0 looks up,
roll > 0 tilts the top of the head to image right; R = R_y(yaw) R_x(pitch) R_z(roll).

**How far to trust it**: see ``TRUST``, which the command prints; ``--labels`` measures it where angles are known.
"""

import csv
import sys
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from eval.detectors import landmark_backend
from eval.labels import COLUMNS, KINDS, check_labelled, read_labels
from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.media.reading import open_frames
from mrfomm.provenance import clip_digest
from mrfomm.store import whole_file

# An average adult head in millimetres, from the nasion: x to image right, y down, z away from the camera. Widths and
# heights are mean anthropometric distances of young adults, women and men, rounded (endocanthion width 32, exocanthion
# width 88, mouth width 52, nose height 51, face height 119, nose protrusion 20); depths are estimates by the authors.
HEAD = {
    "nasion": (0, 0, 0),
    "nose tip": (0, 42, -19),
    "subnasale": (0, 51, -3),
    "chin": (0, 119, 10),
    "left outer eye corner": (-44, 5, 25),
    "left inner eye corner": (-16, 6, 14),
    "right inner eye corner": (16, 6, 14),
    "right outer eye corner": (44, 5, 25),
    "left mouth corner": (-26, 73, 10),
    "right mouth corner": (26, 73, 10),
}

# number of the landmark for each point of HEAD, in its order; left and right are the image's
POINTS = {
    "mediapipe": (168, 4, 2, 152, 33, 133, 362, 263, 61, 291),
    "dlib": (27, 30, 33, 8, 36, 39, 42, 45, 48, 54),
}
FOCAL_LENGTH = 4.0  # in shorter sides of the picture: a head that fills it stands about a metre away

# Mean absolute errors in degrees, each over the pictures that turn about that axis: yaw to 60, pitch to 30, roll to 40
# degrees in 13 steps, five rendered heads of 256 pixels (195 pictures in all). mediapipe's landmark of the nose tip was
# chosen with these pictures in view, nothing else was.
TRUST = {
    "mediapipe": "on rendered heads its mean absolute error was 2.6 degrees in yaw, 3.7 in pitch, 0.3 in roll",
    "dlib": "on rendered heads its mean absolute error was 5.1 degrees in yaw (up to 40 where it is beyond 45), 4.7 in "
    "pitch, 1.6 in roll, and it found no face in 10 of 195",
}
CAUTION = "a face unlike the average has a constant error of some degrees, mostly of pitch; small faces are worse"


class Errors(NamedTuple):
    """Of estimates, by kind of angle in degrees: absolute, the mean absolute error; bias, the mean of estimate - label.

    frames: how many both have.
    """

    absolute: np.ndarray
    bias: np.ndarray
    frames: int


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] -o CSV CLIP", epilog=f"The angles are estimates: {CAUTION}.")
    add = parser.add_argument
    add("clip", metavar="CLIP", help="video, gif or folder of frames with one face")
    add("-o", "--output", metavar="CSV", required=True, help="columns frame, yaw, pitch, roll, clip")
    add("--landmarks", choices=tuple(POINTS), default="mediapipe", help="landmark back end (%(default)s)")
    add("--interpolate", action="store_true", help="fill frames without a face from their neighbours (else left empty)")
    add("--labels", metavar="CSV", help="true angles of the clip: print the estimates' errors")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    labels = None if args.labels is None else read_labels(args.labels)
    source = open_frames(args.clip)
    digest = clip_digest(args.clip)
    if labels is not None:
        check_labelled(args.clip, args.labels)
    backend = landmark_backend(args.landmarks)
    frames = tqdm(source, total=source.count_hint, unit="frame")
    angles = np.array([estimate(frame, backend) for frame in frames])  # [N,3]
    if labels is not None and len(labels) != len(angles):
        raise UserError(
            f"{args.labels}: {len(labels)} rows, but {args.clip} has {len(angles)} frames; mend one of them"
        )
    found = ~np.isnan(angles[:, 0])
    if not found.any():
        raise UserError(f"{args.clip}: {args.landmarks} finds no face in any of its {len(found)} frames")
    write_labels(args.output, interpolated(angles) if args.interpolate else angles, digest)
    for line in summary(args, found):
        print(line, file=sys.stderr)
    if labels is not None:
        print(describe(errors(angles, labels)))
    return 0


def estimate(frame, backend):
    """The head's angles in uint8 [H,W,3] -> float64 [3]: yaw, pitch, roll in degrees; NaN without a face."""
    points = backend.landmarks(frame)
    if points is None:
        return np.full(3, np.nan)
    return angles_of(fit_rotation(points[list(POINTS[backend.name])], frame.shape[:2]))


def fit_rotation(points, shape):
    """The rotation of ``HEAD`` whose picture comes closest to landmarks.

    Args:
        points: float64 [10,2] pixels, in HEAD's order.
        shape: height and width of the picture, in whose centre the camera is taken to look.

    Returns:
        float64 [3,3]: from HEAD's axes to the camera's (x right, y down, z away).
    """
    height, width = shape
    focal = FOCAL_LENGTH * min(height, width)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    head, points = np.array(list(HEAD.values()), np.float64), np.asarray(points, np.float64)
    _, rotation, translation = cv2.solvePnP(head, points, camera, None, flags=cv2.SOLVEPNP_SQPNP)
    rotation, _ = cv2.solvePnPRefineLM(head, points, camera, None, rotation, translation)
    return cv2.Rodrigues(rotation)[0]


def angles_of(rotation):
    """Yaw, pitch, roll in degrees of a rotation [3,3] in the camera's axes (x right, y down, z away) -> float64 [3].

    In these axes R = R_y(-yaw) R_x(-pitch) R_z(roll).
    """
    yaw = -np.arctan2(rotation[0, 2], rotation[2, 2])
    pitch = np.arcsin(np.clip(rotation[1, 2], -1, 1))
    roll = np.arctan2(rotation[1, 0], rotation[1, 1])
    return np.degrees([yaw, pitch, roll])


def interpolated(angles):
    """[N,3] with rows of NaN, not all -> [N,3] with these filled linearly in time; the ends repeat their neighbour."""
    frames, found = np.arange(len(angles)), ~np.isnan(angles[:, 0])
    return np.stack([np.interp(frames, frames[found], column[found]) for column in angles.T], axis=1)


def write_labels(path, angles, digest):
    """Write [N,3] as the label file of the clip with a digest, aside and then renamed. NaN becomes an empty cell, which
    label readers refuse.

    Raises:
        UserError: it can't be written.
    """
    with whole_file(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "clip"])
        for frame, row in enumerate(angles):
            cells = ["" if np.isnan(angle) else f"{angle:.2f}" for angle in row]
            writer.writerow([frame, *cells, "" if frame else digest])


def errors(angles, labels):
    """Errors of estimates [N,3] against labels [N,3], over the frames that have an estimate."""
    difference = (angles - labels)[~np.isnan(angles[:, 0])]
    difference = (difference + 180) % 360 - 180
    return Errors(np.abs(difference).mean(axis=0), difference.mean(axis=0), len(difference))


def describe(result):
    """Errors in a line."""
    parts = (f"{kind} {a:.1f} (bias {b:+.1f})" for kind, a, b in zip(KINDS, result.absolute, result.bias))
    return f"mean absolute error in degrees over {result.frames} frames: {', '.join(parts)}"


def summary(args, found):
    """What to know about the file, line by line."""
    yield f"{args.output}: {found.sum()} of {len(found)} frames, landmarks {args.landmarks}"
    yield f"how far to trust it: {TRUST[args.landmarks]}; {CAUTION}"
    missing = int((~found).sum())
    if missing:
        what = "frame without a face" if missing == 1 else "frames without a face"
        filled = (
            "filled from their neighbours" if args.interpolate else "left empty; cut them out, or use --interpolate"
        )
        yield f"{missing} {what} (the first: {found.argmin()}) {filled}"


if __name__ == "__main__":
    run_command(main)
