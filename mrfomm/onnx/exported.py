"""A model that was exported: its graphs and ``export.json`` beside them. Nothing here needs nnabla.

::

    reference.onnx, keypoints.onnx, frame.onnx, maybe breakdown.onnx
    export.json    format, size, keypoints, fusion, digest of the model, what it knows; each graph's SHA-256

The graphs take any number of references and of driving frames; the fusion mode is fixed.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mrfomm.config import shown
from mrfomm.config.knowledge import Knowledge, knowledge_of
from mrfomm.errors import AnyPath, UserError
from mrfomm.store import sha256_of, whole_file

RECORD = "export.json"
FORMAT = 1
AGAIN = "export the model again: python -m mrfomm.export"
_MAX_BYTES = 1 << 16  # of the record
_LARGEST = 1 << 16


class Exported(NamedTuple):
    """size: of pictures, pixels a side; keypoints: their number; digest: ``model_digest`` of what was exported;
    graphs: name -> SHA-256."""

    folder: Path
    size: int
    keypoints: int
    fusion: str
    digest: str
    graphs: dict[str, str]
    knowledge: Knowledge

    def check(self, name: str) -> None:
        """Raise a UserError where a graph isn't there as it was written: a damaged one might draw something else."""
        path = self.folder / f"{name}.onnx"
        if name not in self.graphs:
            option = " --breakdown" if name == "breakdown" else ""
            raise UserError(f"{path}: was not exported; {AGAIN}{option}")
        if not path.is_file() or sha256_of(path) != self.graphs[name]:
            raise UserError(f"{path}: missing or damaged (checksum differs from {RECORD}); {AGAIN}")


def is_exported(path: AnyPath) -> bool:
    """Whether a path is an exported model's folder."""
    return Path(path, RECORD).is_file()


def write_record(exported: Exported, names: Iterable[str]) -> None:
    """Write the record of the graphs ``names``, which stand in the folder; Exported.graphs is taken from them."""
    graphs = {name: sha256_of(exported.folder / f"{name}.onnx") for name in names}
    record = {"format": FORMAT, **exported._asdict(), **exported.knowledge._asdict(), "graphs": graphs}
    del record["folder"], record["knowledge"]
    with whole_file(exported.folder / RECORD) as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_exported(path: AnyPath, fusion: str | None = None) -> Exported:
    """Read an exported model's record; ``fusion``: the mode that is asked for, None for whatever it has.

    Raises:
        UserError: a record that is damaged or of a later format, or another fusion mode.
    """
    file = Path(path, RECORD)
    try:
        with open(file, encoding="utf-8") as text:
            record = json.loads(text.read(_MAX_BYTES))
        if record["format"] != FORMAT:
            raise UserError(f"{file}: format {shown(record['format'])} is not known here; update mrfomm, or {AGAIN}")
        exported = _exported(file.parent, record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: damaged, or no exported model's; {AGAIN}") from error
    if fusion not in (None, exported.fusion):
        remedy = f"leave --fusion out, or {AGAIN} --fusion {fusion}"
        raise UserError(f"--fusion {fusion}: {path} was exported with {exported.fusion}; {remedy}")
    return exported


def _exported(folder: Path, record: dict[str, Any]) -> Exported:
    size, keypoints, fusion, digest, graphs = (record[name] for name in Exported._fields[1:6])
    numbers, texts = (size, keypoints), (fusion, digest, *graphs, *graphs.values())
    if not all(type(number) is int and 0 < number <= _LARGEST for number in numbers):
        raise ValueError("a number is none")
    if not all(isinstance(text, str) and re.fullmatch(r"[\w.:]+", text) for text in texts):
        raise ValueError("a text is none, or a graph's name leads elsewhere")
    return Exported(folder, size, keypoints, fusion, digest, graphs, knowledge_of(record))
