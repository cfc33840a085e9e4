"""What a training run leaves to look at: log.jsonl, curves.png, pictures/, TensorBoard's event files if asked for."""

import functools
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mrfomm.errors import AnyPath, UserError, check_is_file, named
from mrfomm.store import named_writing, whole_file

LOG, CURVES, TENSORBOARD = "log.jsonl", "curves.png", "tensorboard"
NOT_CURVES = ("step", "epoch", "time", "broken_clips")
TOTAL, VALIDATION = "loss", "validation_l1"  # in the first panel of the curves

Row = dict[str, Any]  # step, epoch, time, and numbers by name


class RunLog:
    """Writes the log of a run into its folder.

    ``tensorboard``: also write event files, to ``folder/tensorboard``; a UserError tells that their writer is missing.
    """

    def __init__(self, folder: AnyPath, tensorboard: bool = False) -> None:
        self._folder = Path(folder)
        self._writer = _event_writer() if tensorboard else None

    @functools.cached_property
    def _events(self) -> Any:
        return self._writer and self._writer(str(self._folder / TENSORBOARD))

    def write(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Append one row: numbers by name, at a step. Those that aren't finite, which JSON doesn't know, are null."""
        row = {"step": step, "epoch": epoch, "time": round(time.time(), 2), **values}
        with named_writing(self._folder / LOG), open(self._folder / LOG, "a", encoding="utf-8") as file:
            file.write(_line(row))
        self._add_scalars(row)

    def _add_scalars(self, row: Row) -> None:
        for name, value in row.items() if self._events else ():
            if name not in ("step", "epoch", "time") and value is not None:
                self._events.add_scalar(name, value, row["step"], row.get("time"))

    def picture(self, step: int, image: np.ndarray) -> None:
        """Keep a picture uint8 [H,W,3] of a step, and draw the curves anew."""
        with whole_file(self._folder / "pictures" / f"{step:08d}.png") as path:
            Image.fromarray(image).save(path)
        self._add_image(step, image)
        draw_curves(read_log(self._folder), self._folder / CURVES)

    def _add_image(self, step: int, image: np.ndarray, when: float | None = None) -> None:
        if self._events:
            self._events.add_image("batch", image, step, when, dataformats="HWC")

    def close(self) -> None:
        """Finish the event files, which are written in the background."""
        if self._events:
            self._events.close()

    def rewind(self, step: int) -> None:
        """Leave what a run has written up to a step: rows, pictures, curves; event files are made anew from them."""
        rows = [row for row in read_log(self._folder) if row["step"] <= step]
        with whole_file(self._folder / LOG) as path:
            path.write_text("".join(map(_line, rows)), encoding="utf-8")
        pictures = {int(path.stem): path for path in self._folder.glob("pictures/*.png") if path.stem.isdecimal()}
        later = [pictures.pop(number) for number in list(pictures) if number > step]
        for path in (self._folder / CURVES, self._folder / TENSORBOARD, *later):
            with named(path, "can't be deleted", "check its permissions"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        draw_curves(rows, self._folder / CURVES)
        for row in rows:
            self._add_scalars(row)
        for number, path in sorted(pictures.items() if self._events else ()):
            self._add_image(number, np.asarray(Image.open(path)), path.stat().st_mtime)


def _line(row: Row) -> str:
    """A row as a line of strict JSON."""
    lost = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps({**row, **lost}) + "\n"


def read_log(folder: AnyPath) -> list[Row]:
    """The rows of a run's log; a last line cut short by a kill is left out.

    Raises:
        UserError: the file can't be read, or another line is not a row; the message names it.
    """
    path = Path(folder) / LOG
    if not path.exists():
        return []
    check_is_file(path)
    with named(path, "can't be read", "move it away"):
        text = path.read_text(encoding="utf-8", errors="replace")
    return [_row(line, f"{path}, line {n}") for n, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1)]


def _row(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row["step"], int):
            raise TypeError("no row")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{place}: damaged; delete this line") from error
    return row


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw logged numbers against the step as a PNG: total loss and validation in the first panel, then one each.

    What never changes is left out.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NOT_CURVES and value is not None:
                series.setdefault(name, []).append((row["step"], value))
    drawn = {name: points for name, points in series.items() if len(points) == 1 or len({y for _, y in points}) > 1}
    first = [name for name in (TOTAL, VALIDATION) if name in drawn]
    contents = [*([first] if first else []), *([name] for name in drawn if name not in first)]
    if not contents:
        return
    columns = min(3, len(contents))
    lines = -(-len(contents) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(contents) :]:
        axes.remove()
    for axes, names in zip(panels, contents):
        _draw_panel(axes, {name: drawn[name] for name in names})
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=80)


def _draw_panel(axes: Any, series: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """One or two lines; the second has an axis of its own, on the right."""
    axes.set_title(" and ".join(series), fontsize=9)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)
    for number, (name, points) in enumerate(series.items()):
        side = axes.twinx() if number else axes
        side.plot(*zip(*points), f"C{number}", linewidth=1, marker="." if len(points) < 20 else "")
        if len(series) > 1:
            side.set_ylabel(name, color=f"C{number}", fontsize=8)


def _event_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("train.tensorboard: TensorBoard's writer is missing; pip install -e .[tensorboard]") from error
    return SummaryWriter
