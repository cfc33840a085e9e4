"""What can be wrong with a file: damage to its bytes, files that lie about their size, paths that are no file.

Everything is drawn from a generator that is passed in, so that a case is the same whenever it is made.
"""

import io
import os
import shutil
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# Damage to bytes


def flip_bits(rng, data):
    """One to thirty flipped bits, half of the time in the header."""
    data = bytearray(data)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 512)
    for _ in range(rng.integers(1, 30)):
        data[rng.integers(reach)] ^= 1 << rng.integers(8)
    return bytes(data)


def truncate(rng, data):
    """Only the beginning."""
    return data[: rng.integers(len(data))]


def behead(rng, data):
    """Only the end."""
    return data[rng.integers(1, len(data)) :]


def remove_chunk(rng, data):
    """A gap."""
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def repeat_chunk(rng, data):
    """A part once more, or a hundred times."""
    start, stop = _span(rng, data)
    times = int(rng.choice([1, 100])) if stop - start < 10_000 else 1
    return data[:stop] + data[start:stop] * times + data[stop:]


def zero_chunk(rng, data):
    """A part zeroed, as after a crash of the file system."""
    start, stop = _span(rng, data)
    return data[:start] + b"\0" * (stop - start) + data[stop:]


def extreme_number(rng, data):
    """Four bytes replaced by an extreme number, often in the header; big-endian or little-endian."""
    reach = len(data) if rng.random() < 0.3 else min(len(data), 1024)
    position = int(rng.integers(max(1, reach - 4)))
    number = struct.pack(str(rng.choice(["<I", ">I"])), int(rng.choice(EXTREMES)))
    return data[:position] + number + data[position + 4 :]


def append_noise(rng, data):
    """Something behind the end."""
    return data + rng.bytes(int(rng.integers(1, 5000)))


def noise(rng, data):
    """As many random bytes."""
    return rng.bytes(len(data))


def nothing(_, data):
    """An empty file."""
    return data[:0]


DAMAGE = (
    flip_bits,
    flip_bits,
    truncate,
    behead,
    remove_chunk,
    repeat_chunk,
    zero_chunk,
    extreme_number,
    extreme_number,
    append_noise,
    noise,
    nothing,
)


def _span(rng, data):
    start = int(rng.integers(len(data)))
    return start, min(len(data), start + int(rng.integers(1, max(2, len(data) // 4))))


def damage(rng, path):
    """Damage a file in place; returns what was done."""
    data = path.read_bytes()
    if not data:
        return "nothing to damage"
    change = DAMAGE[rng.integers(len(DAMAGE))]
    path.write_bytes(change(rng, data))
    return change.__name__


# Paths that are no file


def no_file(rng, path):
    """Replace a path by something that is there and yet no file; returns what it is."""
    kinds = {
        "missing": lambda: None,
        "empty folder": path.mkdir,
        "folder of folders": (path / path.name).mkdir,
        "link to itself": lambda: path.symlink_to(path),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "link to its parent": lambda: path.symlink_to(".."),
        "pipe": lambda: os.mkfifo(path),
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
        "/dev/null": lambda: path.symlink_to("/dev/null"),
        "/proc/self/mem": lambda: path.symlink_to("/proc/self/mem"),
        "socket": lambda: _socket(path),
    }
    kind = str(rng.choice(list(kinds)))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "folder of folders":
        path.mkdir()
    kinds[kind]()
    return kind


def _socket(path):
    """A socket's file; its name is short for the system's sake until it is renamed."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/s")
    os.close(here)
    (path.parent / "s").rename(path)


NAMES = (
    "é" * 100,
    "x" * 250,
    "名前 顔 🙂",
    "-rf",
    "--help",
    "a\nb",
    "a\rb\x1b[31mred",
    " ",
    "%d%s%n{}",
    "a'b\"c`d$(touch pwned);&|",
    "con.aux:stream",
    "a#b?c*[d]",
    os.fsdecode(b"\xff\xfe"),
    "..,..",
    "file:concat|x",
)


def odd_name(rng, path):
    """Rename a path, its suffix kept where the name's 255 bytes allow it; returns the new path."""
    name = str(rng.choice(NAMES))
    while len(os.fsencode(name + path.suffix)) > 255:
        name = name[:-1]
    other = path.with_name(name + path.suffix)
    path.rename(other)
    return other


# Files that lie about their size


def _png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows, before=b""):
    """A grey PNG that claims a size and holds ``rows`` (bytes, compressed here)."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [_png_chunk(b"IHDR", header), before, _png_chunk(b"IDAT", zlib.compress(rows, 9)), _png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def image_bomb(rng, folder):
    """An image file that is larger than it looks, or looks larger than it is; returns its path."""
    makers = {
        "claims.png": lambda: png(100_000, 100_000, b""),
        "most.png": lambda: png(2**31 - 1, 2**31 - 1, b"\0"),
        "zeros.png": lambda: png(9000, 9000, b"\0" * (9001 * 9000)),
        "line.png": lambda: png(1, 80_000, b"\0" * 160_000),
        "row.png": lambda: png(1_000_000, 1, b"\0" * 1_000_001),
        "surplus.png": lambda: png(8, 8, b"\0" * 10**8),
        "text.png": lambda: png(
            8, 8, b"\0" * 72, _png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"A" * 2 * 10**8, 9))
        ),
        "profile.png": lambda: png(
            8, 8, b"\0" * 72, _png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 2 * 10**8, 9))
        ),
        "canvas.gif": lambda: _gif(65535, 65535, 1),
        "frames.gif": lambda: _gif(2000, 2000, 40),
        "zero.gif": lambda: _gif(0, 0, 1),
        "tags.tiff": lambda: _tiff(2**31, 2**31),
        "strip.tiff": lambda: _tiff(60_000, 60_000),
        "huge.bmp": lambda: b"BM" + struct.pack("<IIIIiiHH", 10**6, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24) + b"\0" * 99,
        "huge.ppm": lambda: b"P6 99999 99999 255\n" + b"\0" * 99,
        "huge.pgm": lambda: b"P5 " + b"9" * 5000 + b" 1 255\n",
    }
    name = str(rng.choice(list(makers)))
    path = folder / name
    path.write_bytes(makers[name]())
    return path


def _gif(width, height, frames):
    """A gif with a canvas of a size and so many frames of one pixel."""
    frame = b"\x21\xf9\x04\0\x02\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame * frames + b";"


def _tiff(width, height):
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 9)]
    tags = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + tags + b"\0" * 64


def absurd_box(rng, data):
    """An mp4's or mov's bytes with an extreme number in one of the boxes that tell sizes and times."""
    fields = {
        b"tkhd": range(20, 92, 4),  # times, width, height
        b"mvhd": range(12, 30, 4),
        b"mdhd": range(12, 24, 4),
        b"avc1": (24, 26, 28),
        b"stts": range(4, 20, 4),
        b"stsz": range(4, 24, 4),
        b"stsc": range(4, 20, 4),
        b"stco": range(4, 16, 4),
        b"ctts": range(4, 20, 4),
        b"elst": range(4, 24, 4),
    }
    known = [(name, data.find(name)) for name in fields if name in data]
    name, start = known[rng.integers(len(known))]
    position = start + 4 + int(rng.choice(list(fields[name])))
    number = struct.pack(">I", int(rng.choice([*EXTREMES, 20_000, 1_000_000])))
    return data[:position] + number + data[position + 4 :]


def h5_bomb(rng, path):
    """An HDF5 file in the place of a parameter file; returns what is wrong with it."""
    kind = str(rng.choice(["absurd shape", "compressed zeros", "external link", "many groups", "strings", "deep"]))
    with h5py.File(path, "w") as file:
        if kind == "absurd shape":
            file.create_dataset("a/W", shape=(2**20, 2**20, 2**10), dtype="f4", chunks=(1, 64, 64))
        elif kind == "compressed zeros":
            file.create_dataset("a/W", data=np.zeros((1000, 10_000), "f4"), compression="gzip")
        elif kind == "external link":
            file["a"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "many groups":
            for i in range(2000):
                file.create_group(f"g{i}")
        elif kind == "strings":
            file["a/W"] = "x" * 1000
        else:
            file["/".join(["d"] * 500)] = 1.0
    return kind


def zip_bomb(rng, path):
    """A zip file in the place of a torch checkpoint or npz; returns what is wrong with it."""
    kind = str(rng.choice(["zeros", "escape", "nested", "many"]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if kind == "zeros":
            for name in ("archive/data.pkl", "conv1/W.npy"):
                file.writestr(name, b"\0" * 10**8)
        elif kind == "escape":
            file.writestr("../../pwned/data.pkl", b"\x80\x02}.")
        elif kind == "nested":
            inner = io.BytesIO()
            with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as nested:
                nested.writestr("data.pkl", b"\0" * 10**7)
            file.writestr("archive/data.pkl", inner.getvalue())
        else:
            for i in range(5000):
                file.writestr(f"archive/data/{i}", b"")
            file.writestr("archive/data.pkl", b"\x80\x02}.")
    return kind


def npy(rng):
    """The bytes of an array file that is not what it says."""
    header = str(
        rng.choice(
            [
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }",
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
                "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
                "{'descr': '<f4', 'shape': __import__('os').system('touch pwned'), }",
                "(" * 200,
            ]
        )
    ).encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header) + 1) + header + b"\n" + b"\0" * 64


def odd_image(rng, path):
    """A healthy picture that few people have: returns its path."""
    size = tuple(int(side) for side in rng.integers(1, 80, 2))
    mode, suffix = [
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("1", "tiff"),
        ("LA", "png"),
        ("P", "gif"),
        ("I;16", "png"),
        ("F", "tiff"),
    ][rng.integers(7)]
    path = path.with_suffix(f".{suffix}")
    Image.new(mode, size).save(path)
    return path


def copy(source, target):
    """Copy a file or folder; returns the target."""
    if Path(source).is_dir():
        return Path(shutil.copytree(source, target))
    return Path(shutil.copyfile(source, target))
