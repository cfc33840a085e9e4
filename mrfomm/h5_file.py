"""Read nnabla's parameter files (``.h5``) strictly: numbers that are in the file itself, and nothing else."""

import math
import os

import h5py
import numpy as np

from mrfomm.errors import UserError, check_is_file

_MAX_EXPANSION = 16  # of compressed data; weights shrink by less


def read_h5(path):
    """Read every array of an HDF5 file.

    nnabla saves a parameter ``a/b/W`` as the dataset of that path; its attributes (``index``, ``need_grad``)
    are not needed. Nothing outside the file is touched: links and data that lead elsewhere are refused.

    Args:
        path: the file.

    Returns:
        Name -> array of the stored number type, in the order of the names.

    Raises:
        UserError: unreadable or damaged file, a soft or external link, external or virtual data, something
            other than numbers, or arrays larger than the file can hold.
    """
    check_is_file(path)
    try:
        limit = os.stat(path).st_size * _MAX_EXPANSION
        with h5py.File(path, "r") as file:
            datasets = _datasets(file, path)
            _check_size(datasets, limit, path)
            return {name: np.asarray(dataset[()]) for name, dataset in sorted(datasets.items())}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # all of these are h5py's
        raise UserError(f"{path}: can't be read as HDF5 ({error}); fetch the file again") from error


def _datasets(file, path):
    """Walk the groups without recursion and without following any link but hard ones."""
    found, visited, pending = {}, {_address(file)}, [("", file)]
    while pending:
        prefix, group = pending.pop()
        for key in group:
            name = prefix + key
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UserError(f"{path}: {name} is a {type(link).__name__}; use a file without links")
            item = group[key]
            if isinstance(item, h5py.Dataset):
                _check_numbers(item, name, path)
                found[name] = item
            elif isinstance(item, h5py.Group) and _address(item) not in visited:
                visited.add(_address(item))
                pending.append((f"{name}/", item))
            else:
                raise UserError(f"{path}: {name} is neither array nor a group of its own; use another file")
    return found


def _address(group):
    return h5py.h5o.get_info(group.id).addr


def _check_numbers(dataset, name, path):
    if dataset.external or dataset.is_virtual:
        raise UserError(f"{path}: {name} has its data in another file; use a file that holds it")
    if dataset.shape is None or dataset.dtype.kind not in "fiub":
        raise UserError(f"{path}: {name} holds {dataset.dtype}, not numbers; use a file of nnabla parameters")


def _check_size(datasets, limit, path):
    total = 0
    for name, dataset in datasets.items():
        total += math.prod(dataset.shape) * dataset.dtype.itemsize
        if total > limit:
            raise UserError(f"{path}: {name} is larger than the file can hold; fetch the file again")
