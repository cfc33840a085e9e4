"""Estimate the head's angles in a clip that has no labels: `python -m eval.pose CLIP -o yaw.csv`.

A rotation is fitted to a few landmarks and the same points of an average head (``HEAD``). The CSV
is a label file as ``mrfomm/data/labels.py`` reads it, in degrees: yaw > 0 turns the face to image right, pitch > 0
looks up, roll > 0 tilts the top of the head to image right; R = R_y(yaw) R_x(pitch) R_z(roll).

**How far to trust it**: see ``TRUST``, which the command prints; ``--labels`` measures it where angles are known.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mrfomm.data.labels import COLUMNS, KINDS, check_labelled, read_labels
from mrfomm.errors import AnyPath, UserError, command_parser, run_command
from mrfomm.media.provenance import clip_digest
from mrfomm.media.reading import open_frames
from mrfomm.store import whole_file

from .detectors import Find, landmark_backend

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


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, "[OPTION ...] -o CSV CLIP", epilog=f"The angles are estimates: {CAUTION}.")
    add = parser.add_argument
    add("clip", metavar="CLIP", help="video, gif or folder of frames with one face")
    add("-o", "--output", metavar="CSV", required=True, help="label file to write, angles in degrees")
    add("--landmarks", choices=tuple(POINTS), default="mediapipe", help="landmark back end (%(default)s)")
    add("--interpolate", action="store_true", help="fill frames without a face from their neighbours (else left empty)")
    add("--labels", metavar="CSV", help="true angles of the clip: print the estimates' errors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = parse_arguments(arguments)
    labels = None if args.labels is None else read_labels(args.labels)
    source = open_frames(args.clip)
    digest = clip_digest(args.clip)
    if labels is not None:
        check_labelled(args.clip, args.labels)
    find = landmark_backend(args.landmarks)
    frames = tqdm(source, total=source.count_hint, unit="frame")
    angles = np.array([estimate(frame, find, POINTS[args.landmarks]) for frame in frames])  # [N,3]
    if labels is not None and len(labels) != len(angles):
        raise UserError(
            f"{args.labels}: {len(labels)} rows, but {args.clip} has {len(angles)} frames; mend one of them"
        )
    found = ~np.isnan(angles[:, 0])
    if not found.any():
        raise UserError(f"{args.clip}: {args.landmarks} finds no face in any of its {len(found)} frames")
    write_labels(args.output, interpolated(angles) if args.interpolate else angles, digest)
    print(f"{args.output}: {found.sum()} of {len(found)} frames, landmarks {args.landmarks}", file=sys.stderr)
    print(f"how far to trust it: {TRUST[args.landmarks]}; {CAUTION}", file=sys.stderr)
    if not found.all():
        what = "frame without a face" if (~found).sum() == 1 else "frames without a face"
        left = "left empty; cut them out, or use --interpolate"
        done = "filled from their neighbours" if args.interpolate else left
        print(f"{(~found).sum()} {what} (the first: {found.argmin()}) {done}", file=sys.stderr)
    if labels is not None:
        means = zip(KINDS, *errors(angles, labels))
        parts = ", ".join(f"{kind} {absolute:.1f} (bias {bias:+.1f})" for kind, absolute, bias in means)
        print(f"mean absolute error in degrees over {found.sum()} frames: {parts}")
    return 0


def estimate(frame: np.ndarray, find: Find, points: Sequence[int]) -> np.ndarray:
    """The head's angles in uint8 [H,W,3] -> float64 [3]: yaw, pitch, roll in degrees; NaN without a face.

    find, points: a landmark back end and its POINTS.
    """
    landmarks = find(frame)
    return (
        np.full(3, np.nan) if landmarks is None else angles_of(fit_rotation(landmarks[list(points)], *frame.shape[:2]))
    )


def fit_rotation(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The rotation of ``HEAD`` whose picture comes closest to landmarks, float64 [10,2] pixels in HEAD's order.

    The camera is taken to look at the centre of the picture. The rotation, float64 [3,3], leads from HEAD's axes to the
    camera's (x right, y down, z away).
    """
    focal = FOCAL_LENGTH * min(height, width)
    camera = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    head, points = np.array(list(HEAD.values()), np.float64), np.asarray(points, np.float64)
    undistorted: Any = None
    _, rotation, translation = cv2.solvePnP(head, points, camera, undistorted, flags=cv2.SOLVEPNP_SQPNP)
    rotation, _ = cv2.solvePnPRefineLM(head, points, camera, undistorted, rotation, translation)
    return cv2.Rodrigues(rotation)[0]


def angles_of(rotation: np.ndarray) -> np.ndarray:
    """Yaw, pitch, roll in degrees of a rotation [3,3] in the camera's axes (x right, y down, z away) -> float64 [3].

    In these axes R = R_y(-yaw) R_x(-pitch) R_z(roll).
    """
    yaw = -np.arctan2(rotation[0, 2], rotation[2, 2])
    pitch = np.arcsin(np.clip(rotation[1, 2], -1, 1))
    roll = np.arctan2(rotation[1, 0], rotation[1, 1])
    return np.degrees([yaw, pitch, roll])


def interpolated(angles: np.ndarray) -> np.ndarray:
    """[N,3] with rows of NaN, not all -> [N,3] with these filled linearly in time; the ends repeat their neighbour."""
    frames, found = np.arange(len(angles)), ~np.isnan(angles[:, 0])
    return np.stack([np.interp(frames, frames[found], column[found]) for column in angles.T], axis=1)


def write_labels(path: AnyPath, angles: np.ndarray, digest: str) -> None:
    """Write [N,3] as the label file of the clip with a digest, whole or not at all.

    NaN becomes an empty cell, which label readers refuse.
    """
    with whole_file(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "clip"])
        for frame, row in enumerate(angles):
            cells = ["" if np.isnan(angle) else f"{angle:.2f}" for angle in row]
            writer.writerow([frame, *cells, "" if frame else digest])


def errors(angles: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of estimates [N,3] against labels [N,3], where there are any: mean absolute error and mean error, [3] degrees."""
    difference = (angles - labels)[~np.isnan(angles[:, 0])]
    difference = (difference + 180) % 360 - 180
    return np.abs(difference).mean(axis=0), difference.mean(axis=0)


if __name__ == "__main__":
    run_command(main)
