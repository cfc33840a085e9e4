"""What is built from setup.py: version, files, and a declared distribution behind every import."""

import ast
import hashlib
import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mrfomm

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "mrfomm" / "assets"
MODULES = sorted([*ROOT.glob("mrfomm/**/*.py"), *ROOT.glob("eval/**/*.py")])

# import name -> distribution, where they differ
DISTRIBUTIONS = {
    "tensorboardX": "tensorboardx",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "dlib": "dlib-bin",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "nnabla_ext": "nnabla-ext-cuda120",
    "yaml": "pyyaml",
    "markdown_it": "markdown-it-py",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the package as installed (lib/) and its metadata (mrfomm.egg-info/)."""
    folder = tmp_path_factory.mktemp("built")
    build = ["egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder / "lib")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *build], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def requirements(built):
    """The names required by each extra, in lower case; the core's under ""."""
    names, extra = {"": set()}, ""
    for line in (built / "mrfomm.egg-info" / "requires.txt").read_text(encoding="utf-8").split("\n"):
        section = re.fullmatch(r"\[([^:\]]*)(:.*)?\]", line)  # [extra], [extra:marker] or [:marker]
        if section:
            extra = section.group(1)
        elif line:
            names.setdefault(extra, set()).add(re.match(r"[\w.-]+", line).group().lower())
    return names


def test_metadata_has_the_packages_version(built):
    metadata = (built / "mrfomm.egg-info" / "PKG-INFO").read_text(encoding="utf-8")
    assert re.search(r"^Version: (.+)$", metadata, re.MULTILINE).group(1) == mrfomm.__version__


def test_every_asset_is_recorded_with_its_checksum():
    readme = (ASSETS / "README.md").read_text(encoding="utf-8")
    recorded = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    sums = {str(path.relative_to(ASSETS)): hashlib.sha256(path.read_bytes()) for path in files_below(ASSETS)}
    sums.pop("README.md")
    assert recorded == {name: checksum.hexdigest() for name, checksum in sums.items()}


def test_build_holds_every_module_and_asset(built):
    files = [*MODULES, *files_below(ASSETS), *files_below(ROOT / "eval" / "templates")]
    files += [ROOT / "mrfomm" / "py.typed", ROOT / "eval" / "py.typed"]  # type checkers want them
    expected = {Path(str(path.relative_to(ROOT)).replace("eval/", "mrfomm_eval/", 1)) for path in files}
    expected |= {Path("mrfomm") / path.relative_to(ROOT) for path in ROOT.glob("configs/*.yaml")}
    assert {path.relative_to(built / "lib") for path in files_below(built / "lib")} == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_required_or_their_extra_is_named(module, requirements):
    allowed = set(requirements[""])
    for extra in named_extras(module) | named_extras(module.with_name("__init__.py")):
        allowed |= requirements[extra]
    foreign = {DISTRIBUTIONS.get(name, name) for name in imported_names(module) if not is_standard_or_own(name)}
    assert foreign <= allowed, "require it in setup.py; if in an extra, the module or its package must name `.[extra]`"


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def parse(module):
    return ast.parse(module.read_text(encoding="utf-8"))


def imported_names(module):
    """Top-level names of all absolute imports, wherever they stand in the module."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def named_extras(module):
    """The extras in ``.[name]`` of all strings, f-strings included."""
    strings = (str(node.value) for node in ast.walk(parse(module)) if isinstance(node, ast.Constant))
    return {extra for text in strings for extra in re.findall(r"\.\[(\w+)\]", text)}


def is_standard_or_own(name):
    if name in ("mrfomm", "eval") or name in sys.builtin_module_names:
        return True
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    if spec.origin == "frozen":
        return True
    library, origin = Path(sysconfig.get_path("stdlib")), Path(spec.origin)
    return library in origin.parents and "site-packages" not in origin.parts
