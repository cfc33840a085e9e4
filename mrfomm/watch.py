"""What a training run leaves to look at: log.jsonl, curves.png, pictures/, TensorBoard's event files if asked for."""

import json
import time
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from mrfomm.errors import UserError, check_is_file
from mrfomm.files import cant_write, whole_file

LOG = "log.jsonl"
NOT_CURVES = ("step", "epoch", "time", "broken_clips")


class RunLog:
    """Writes the log of a run.

    Args:
        folder: of the run.
        tensorboard: also write event files to ``folder/tensorboard`` (extra ``tensorboard``).

    Raises:
        UserError: TensorBoard's writer is asked for and not installed.
    """

    def __init__(self, folder, tensorboard=False):
        self._folder = Path(folder)
        self._events = _event_writer(self._folder / "tensorboard") if tensorboard else None

    def write(self, step, epoch, values):
        """Append one row: numbers by name, at a step."""
        row = {"step": step, "epoch": epoch, "time": round(time.time(), 2), **values}
        try:
            with open(self._folder / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cant_write(self._folder / LOG, error) from error
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def picture(self, step, image):
        """Keep a picture uint8 [H,W,3] of a step, and draw the curves anew."""
        with whole_file(self._folder / "pictures" / f"{step:08d}.png") as path:
            Image.fromarray(image).save(path)
        if self._events:
            self._events.add_image("batch", image, step, dataformats="HWC")
        draw_curves(read_log(self._folder), self._folder / "curves.png")

    def close(self):
        """Finish the event files, which are written in the background."""
        if self._events:
            self._events.close()

    def rewind(self, step):
        """Drop the rows after a step, which a resumed run writes again."""
        rows = [row for row in read_log(self._folder) if row["step"] <= step]
        with whole_file(self._folder / LOG) as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_log(folder):
    """The rows of a run's log; a last line cut short by a kill is left out.

    Raises:
        UserError: the file can't be read, or another line is not a row; the message names it.
    """
    path = Path(folder) / LOG
    if not path.exists():
        return []
    check_is_file(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); move it away") from error
    return [_row(line, f"{path}, line {n}") for n, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1)]


def _row(line, place):
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row["step"], int):
            raise TypeError("no row")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{place}: damaged; delete this line") from error
    return row


def draw_curves(rows, path):
    """Draw every logged number against the step, a panel each, as a PNG."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in NOT_CURVES))
    if not names:
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points), linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=80)


def _event_writer(folder):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError("train.tensorboard: TensorBoard's writer is missing; pip install -e .[tensorboard]") from error
    return SummaryWriter(str(folder))
