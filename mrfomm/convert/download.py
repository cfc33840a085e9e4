"""Published weights by name: fetched from the address that a YAML file gives, and compared with its checksum."""

import http.client
import sys
import urllib.request
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from mrfomm.bundled import ASSETS
from mrfomm.config import read_yaml
from mrfomm.errors import AnyPath, UserError
from mrfomm.store import checksum_of, whole_file

PUBLISHED = ASSETS / "published.yaml"
_LENGTHS = {"md5": 32, "sha256": 64}  # of checksums in hexadecimal
_PATIENCE = 60.0  # seconds without a byte


class Published(NamedTuple):
    """url: of the file; checksum: ``md5:`` or ``sha256:`` and hexadecimal digits, or "" where none is known."""

    url: str
    checksum: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(urlsplit(self.url).path).name


def published(name: str, path: AnyPath = PUBLISHED, checksum: str | None = None) -> Published:
    """The entry of a name in a file like PUBLISHED; ``checksum`` takes the place of the entry's own. A UserError tells
    what is wrong with it."""
    entries = read_yaml(path)
    if name not in entries:
        raise UserError(f"--download {name}: {path} has {', '.join(map(str, entries)) or 'nothing'}; give one of these")
    entry = entries[name] if isinstance(entries[name], dict) else {}
    found = Published(str(entry.get("url", "")), str(entry.get("checksum", "") if checksum is None else checksum))
    kind, _, digits = found.checksum.lower().partition(":")
    if found.checksum and not (len(digits) == _LENGTHS.get(kind) and set(digits) <= set("0123456789abcdef")):
        raise UserError(f"{name}: checksum {found.checksum}: write md5: or sha256: and all hexadecimal digits")
    if urlsplit(found.url).scheme not in ("http", "https") or not found.file_name:
        raise UserError(f"{path}: {name}: url {found.url!r} is no address of a file; write https://...")
    return found._replace(checksum=found.checksum.lower())


def fetch(source: Published, folder: AnyPath) -> Path:
    """The published file in a folder: fetched, or as an earlier call has left it, and compared with its checksum. Of
    one without a checksum, its SHA-256 is told on stderr.

    Raises:
        UserError: it can't be had, or is another than it should be; then nothing new is left.
    """
    path = Path(folder, source.file_name)
    if path.is_file():
        print(f"{path}: is there already", file=sys.stderr)
        _compare(path, path, source)
        return path
    with whole_file(path) as aside:
        try:
            _copy(source.url, aside)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that is none
            remedy = "try again, or fetch it by hand and convert the file"
            raise UserError(f"{source.url}: can't be fetched ({error or type(error).__name__}); {remedy}") from error
        _compare(aside, path, source)
    return path


def _copy(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, open(path, "wb") as file:
        length = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=length, unit="B", unit_scale=True, desc=f"fetching {url}") as bar:
            while block := answer.read(1 << 16):
                bar.update(file.write(block))
    if length not in (None, path.stat().st_size):
        raise http.client.HTTPException(f"{path.stat().st_size} of {length} bytes came")


def _compare(path: Path, name: Path, source: Published) -> None:
    """Compare the file at ``path``, which is or will be ``name``, with its checksum."""
    kind, _, expected = source.checksum.partition(":")
    found = checksum_of(path, kind or "sha256")
    if not expected:
        print(f"{name}: sha256 {found}; its publishers name no checksum to compare it with", file=sys.stderr)
    elif found != expected:
        remedy = "delete it and try again, or give --checksum if you know a better one"
        raise UserError(f"{name}: {kind} is {found}, not {expected}: another file than was published; {remedy}")
