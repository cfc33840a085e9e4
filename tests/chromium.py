"""A headless Chromium for tests: the npm package @sparticuz/chromium carries the binary itself.

It is fetched by npm once, checked, and kept in the user's cache. Linux on x86-64 only.
"""

import contextlib
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

PACKAGE = "@sparticuz/chromium@147.0.0"
SHA512 = (
    "e1929e01041af2ea769adebbe6a4a2b73b4b75b42b95ff0129d0b99da79aa7ee"
    "4cbf5395d4e94974fa14f84242fe9e6c414254426378afeab9f8485a68e507a5"
)
# a camera that shows a test picture, and that every page may use
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
"""


class UnavailableError(Exception):
    """Why there is no Chromium to test with."""


@contextlib.contextmanager
def open_browser():
    """A Browser of Playwright's. Where there can be none, the test fails in CI and is skipped elsewhere."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        give_up(f"no Playwright ({error})")
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright.chromium)
        except UnavailableError as error:
            give_up(str(error))
        yield browser
        browser.close()


def give_up(reason):
    """Fail in CI, where everything has to be there; skip elsewhere."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no browser: {reason}")


def launch(kind, flags=CAMERA):
    """A Browser of Playwright's BrowserType.

    Raises:
        UnavailableError: another kind of machine, no npm, or the package can't be fetched.
    """
    folder = fetch()
    environment = {
        **os.environ,
        "FONTCONFIG_FILE": str(folder / "fonts.conf"),  # without any font, Chromium crashes
        "LD_LIBRARY_PATH": str(folder / "lib"),
    }
    return kind.launch(
        executable_path=folder / "chromium",
        env=environment,
        args=["--headless=shell", "--no-sandbox", "--disable-gpu", *flags],
    )


def fetch():
    """The folder with the binary, its libraries and fonts; fetched if it isn't there."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError("the Chromium for tests is for Linux on x86-64")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mrfomm"
    folder = cache / f"chromium-{PACKAGE.rpartition('@')[2]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".chromium-", dir=cache) as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        _unpack(_download(aside), whole)
        with contextlib.suppress(FileExistsError, OSError):  # another process was faster
            whole.rename(folder)
    return folder


def _download(folder):
    """The package as bytes, by npm, into ``folder``."""
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError(f"npm is not installed, which fetches {PACKAGE}")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error", f"--cache={folder}/npm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    found = list(Path(folder).glob("*.tgz"))
    if done.returncode or len(found) != 1:
        raise UnavailableError(f"npm can't fetch {PACKAGE}: {done.stderr.strip() or done.stdout.strip()}")
    package = found[0].read_bytes()
    if hashlib.sha512(package).hexdigest() != SHA512:
        raise UnavailableError(f"{PACKAGE}: not the file that was tested")
    return package


def _unpack(package, folder):
    import brotli  # comes with Gradio

    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        for name in ("chromium", "al2023.tar", "fonts.tar"):
            content = brotli.decompress(tar.extractfile(f"package/bin/{name}.br").read())
            if name.endswith(".tar"):
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    inner.extractall(folder)
            else:
                (folder / name).write_bytes(content)
    (folder / "chromium").chmod(0o755)
    (folder / "fonts.conf").write_text(FONTS)


if __name__ == "__main__":
    print(fetch())
