"""notebooks/first_steps.ipynb: it runs on the bundled model, and what is committed is an executed, small one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell has left: stream, image/png ..."""
    return [kind for output in cell.outputs for kind in output.get("data", [output.output_type])]


@pytest.mark.slow
def test_it_runs(tmp_path):
    """As `make notebook` does; the same kinds of outputs come out of every cell as are committed."""
    copy = shutil.copy(NOTEBOOK, tmp_path)
    execute = str(Path(sys.executable).with_name("jupyter-execute"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([execute, "--inplace", "--timeout=1800", copy], env=environment, check=True)
    assert [kinds(cell) for cell in code_cells(copy)] == [kinds(cell) for cell in code_cells(NOTEBOOK)]


def test_the_committed_one_is_executed_and_small():
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert "error" not in [kind for cell in cells for kind in kinds(cell)]
    assert sum(kind == "image/png" for cell in cells for kind in kinds(cell)) >= 6
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert str(Path.home()) not in text
    assert str(ROOT) not in text
