"""What all processes of a run must have alike: else they would train different models together, without a word."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import nnabla as nn

import mrfomm
from mrfomm.config import shown
from mrfomm.errors import UserError
from mrfomm.runtime.processes import Communicator


def agree(communicator: Communicator, facts: Mapping[str, object]) -> None:
    """Raise a UserError, the same in all processes, that names a fact that isn't the same in all, and on which hosts.

    Collective. ``facts``: values by what they are called, which can be pickled; the names are the same everywhere.
    """
    (first, expected), *others = communicator.gather((os.uname().nodename, facts))
    for rank, (host, found) in enumerate(others, 1):
        for name, value in expected.items():
            if found[name] != value:
                here, there = f"{shown(value)} on {first} (rank 0)", f"{shown(found[name])} on {host} (rank {rank})"
                raise UserError(f"{name}: {here}, but {there}; all processes must have the same")


def versions() -> dict[str, object]:
    """The versions that all processes must have; the program's own with a digest of its code."""
    package = Path(mrfomm.__file__).parent
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py")))).hexdigest()
    return {"mrfomm's version": f"{mrfomm.__version__}, code {code[:12]}", "nnabla's version": nn.__version__}
