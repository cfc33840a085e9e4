"""README, CONTRIBUTING and docs/: every command line is tried, quoted messages exist, the site builds by itself.

Every command in a code block runs here (``make`` dry), unless a comment above says what it needs that a test hasn't::

    <!-- needs: data -->

(one of ``NEEDS``). A marked command must still be accepted by the real parser and name files that exist. Code that is
no command stands in a fenced block of another language than sh.
"""

import ast
import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import chromium
import numpy as np
import pytest
from markdown_it import MarkdownIt

from eval.labels import read_labels
from mrfomm import Reenactor, bundled
from mrfomm.media.reading import open_frames
from mrfomm.media.writing import open_sink
from mrfomm.reenactment.motion import Transfer
from scripts import draw_architecture

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
NEEDS = {"GPU", "camera", "data", "network"}
OWN_FOLDERS = ("configs", "scripts", "tests")  # what a command names there must exist

# What is put behind a command of the documentation, so that it ends soon. Later options win.
SHORTER = {
    "animate.py": ["--driving", "v.mp4"],
    "reconstruct.py": ["--data", "DATA"],
    "train.py": ["--set", "train.epochs=1", "train.milestones=[]", "data.num_repeats=1", "data.workers=0"],
    "eval.bins": ["--data", "RECORDINGS"],
    "mrfomm.heads": ["--subjects", "1", "--frames", "2", "--size", "32", "--workers", "1"],
}
# Commands that a test of their own runs: servers, and what takes long whatever is put behind it.
RUN_ELSEWHERE = {
    "mrfomm.app": "tests/app/test_app.py",
    "mrfomm.doctor": "tests/commands/test_doctor.py",
    "benchmarks.run": "tests/project/test_benchmarks.py",
    "pytest": "tests/conftest.py",
}


class Command(NamedTuple):
    """A command line of a page: line number, words, and what its block is marked to need (or None)."""

    line: int
    words: list[str]
    needs: str

    def __str__(self):
        return shlex.join(self.words)


def commands_of(text):
    """The commands of a page, in order."""
    needs = None
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            needs = re.fullmatch(r"<!-- needs: (\w+) -->", token.content.strip())
        elif token.type in ("fence", "code_block"):
            if token.info in ("", "sh"):
                lines = token.content.replace("\\\n", " ").split("\n")
                for number, line in enumerate(lines, token.map[0] + 1):
                    words = shlex.split(line, comments=True)
                    if words:
                        yield Command(number, words, needs and needs.group(1))
            needs = None


def python_blocks(text):
    """The Python code of a page."""
    return [token.content for token in MarkdownIt().parse(text) if token.type == "fence" and token.info == "python"]


def inline_commands(text):
    """The words of Python commands in running text; they may be incomplete."""
    for token in MarkdownIt().parse(text):
        for child in token.children or []:
            if child.type == "code_inline" and child.content.startswith("python "):
                yield shlex.split(child.content)


def python_target(words):
    """Script or module that a command line starts, and its arguments; (None, []) if that isn't Python.

    Assignments before the program and ``mpirun`` around it are left out.
    """
    words = list(words)
    while "=" in words[0]:
        words.pop(0)
    if words[0] == "mpirun":
        words = words[words.index("python") :]
    if words[:3] == ["python", "-m", "mrfomm"] and len(words) > 3:
        words = [f"mrfomm-{words[3]}", *words[4:]]
    if words[0] == "mrfomm-doctor":
        return "mrfomm.doctor", words[1:]
    if words[0].startswith("mrfomm-"):
        return f"{words[0][len('mrfomm-') :]}.py", words[1:]
    if words[0] != "python":
        return None, []
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


@functools.cache
def module_of(target):
    """The module with a target's ``parse_arguments`` and ``main``."""
    name = target.removesuffix(".py").removeprefix("mrfomm.")
    if name in ("train", "animate", "reconstruct", "export", "doctor"):
        return importlib.import_module(f"mrfomm.commands.{name}")
    if name == "provenance":
        return importlib.import_module("mrfomm.media.provenance")
    if target.startswith("scripts/"):
        return importlib.import_module(target[:-3].replace("/", "."))
    module = importlib.import_module(target)
    return module if hasattr(module, "main") else importlib.import_module(f"{target}.__main__")


# checks


def check_files(words):
    """Files of this repository that a command names exist."""
    for word in words:
        if word.split("/")[0] in OWN_FOLDERS:
            assert (ROOT / word).exists(), f"{word}: no such file in the repository"


def check_python(target, arguments):
    """The parser accepts the arguments, and files that they name exist."""
    check_files([target, *arguments])
    if target != "pytest" and hasattr(module_of(target), "parse_arguments"):
        module_of(target).parse_arguments(arguments)


def run_python(target, arguments):
    """Run it here, unless a test of its own does."""
    if target in RUN_ELSEWHERE:
        assert (ROOT / RUN_ELSEWHERE[target]).exists()
    else:
        assert not module_of(target).main([*arguments, *SHORTER.get(target, [])])  # 0, or None of a script


def check_other(command):
    """What isn't Python: few forms are known."""
    program, *rest = command.words
    if program == "make":
        subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif program == "pip":
        assert command.needs in ("network", "GPU")
        known = re.search(r"extras_require=\{(.*?)\}", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL)
        asked = re.findall(r"[\w-]+", "".join(re.findall(r"\.\[(.*?)\]", " ".join(rest))))
        assert set(asked) <= set(re.findall(r'"(\w+)":', known.group(1)))
    elif program == "bash":
        assert (ROOT / rest[0]).exists()
    else:
        assert command.words == [".", ".venv/bin/activate"], "unknown command; is it one? (else: another language)"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that the documentation's commands and SHORTER name: a.png b.png c.png v.mp4 clip.mp4, DATA, RECORDINGS."""
    folder = tmp_path_factory.mktemp("files")
    for name, path in zip(("a.png", "b.png", "c.png"), bundled.SAMPLE_REFERENCES):
        (folder / name).write_bytes(path.read_bytes())
    shorten(bundled.SAMPLE_DRIVING, folder / "v.mp4", range(4))
    shorten(bundled.SAMPLE_DRIVING, folder / "clip.mp4", range(0, 75, 6))
    (folder / "DATA" / "test").mkdir(parents=True)
    shorten(next((bundled.SAMPLE_DATA / "test").iterdir()), folder / "DATA" / "test" / "clip", range(3))
    for pattern in ("s1_soft", "s2_side"):
        source, target = bundled.BENCHMARK / pattern, folder / "RECORDINGS" / pattern
        target.mkdir(parents=True)
        angles = read_labels(source / "yaw.csv")
        chosen = [i for i, angle in enumerate(angles[:, 0]) if angle in (-30, 0, 30)]
        shorten(source / "yaw.mp4", target / "yaw", chosen)
        rows = [",".join(map(str, (i, *angles[frame]))) for i, frame in enumerate(chosen)]
        (target / "yaw.csv").write_text("\n".join(["frame,yaw,pitch,roll", *rows]))
    return folder


def shorten(source, target, chosen):
    """Some frames of a clip as another one."""
    with open_sink(target, 25) as sink:
        for i, frame in enumerate(open_frames(source)):
            if i in chosen:
                sink.write(frame)


@pytest.fixture
def scratch(files, tmp_path, tmp_path_factory, monkeypatch):
    """An empty current folder with those files and the repository's configs."""
    for path in (*files.iterdir(), ROOT / "configs"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "mrfomm").mkdir()
    (tmp_path / "mrfomm" / "assets").symlink_to(bundled.ASSETS)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs_or_says_what_it_needs(page, scratch):
    text = page.read_text(encoding="utf-8")
    for command in commands_of(text):
        where = f"{page.name}, line {command.line}: {command}"
        assert command.needs in {None, *NEEDS}, where
        target, arguments = python_target(command.words)
        try:
            if target is None:
                check_other(command)
            else:
                check_python(target, arguments)
                if command.needs is None:
                    run_python(target, arguments)
        except (Exception, SystemExit) as error:
            raise AssertionError(where) from error
    for block in python_blocks(text):
        exec(compile(block, page.name, "exec"), {})


def test_the_loop_without_this_project_draws_the_same(scratch):
    """docs/onnx.md, against Reenactor on the frames that the loop read; it imports nothing of ours."""
    page = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    (command,), (block,) = [each for each in commands_of(page) if each.needs is None], python_blocks(page)
    run_python(*python_target(command.words))
    names = {}
    exec(compile(block, "onnx.md", "exec"), names)
    assert "mrfomm" not in block
    assert len(names["result"]) == len(list(open_frames("result.mp4"))) == 4
    driving = list(names["iio"].imiter("v.mp4", plugin="pyav"))
    reenactor = Reenactor(bundled.MODEL, ["a.png", "b.png", "c.png"])
    expected = list(reenactor.animate(driving, Transfer(start=0, anchor=0)))
    assert np.ptp(np.stack(expected).astype(int), axis=0).max() > 10  # it moves
    assert np.abs(np.stack(expected).astype(int) - names["result"]).max() <= 1


def test_commands_in_running_text_name_options_that_exist(capsys):
    for page in PAGES:
        for words in inline_commands(page.read_text(encoding="utf-8")):
            target, arguments = python_target(words)
            check_files([target])
            with pytest.raises(SystemExit):
                module_of(target).main(["--help"])
            known = capsys.readouterr().out
            unknown = [word for word in arguments if word.startswith("-") and word not in known]
            assert not unknown, f"{page.name}: {shlex.join(words)}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_commands_in_the_heads_of_configurations_parse(path):
    head = re.sub(r"\\\n#", "", path.read_text(encoding="utf-8"))
    found = [shlex.split(line) for line in re.findall(r"^#   ((?:python|mpirun) .*?)(?: +or .*)?$", head, re.MULTILINE)]
    assert found
    for words in found:
        check_python(*python_target(words))


def test_commands_are_found():
    """Of a made-up page."""
    text = (
        "```sh\nmake demo  # a\nA=1 mpirun -n 2 python \\\n  train.py\n```\n\n<!-- needs: data -->\n\n"
        "    python -m eval.bins\n\n```sh\npip x\n```\n```text\na b\n```\n"
    )
    assert [(command.words, command.needs) for command in commands_of(text)] == [
        (["make", "demo"], None),
        (["A=1", "mpirun", "-n", "2", "python", "train.py"], None),
        (["python", "-m", "eval.bins"], "data"),
        (["pip", "x"], None),
    ]
    assert python_target(["A=1", "mpirun", "-n", "2", "python", "train.py", "--x"]) == ("train.py", ["--x"])
    assert python_target(["python", "-m", "eval.bins"]) == ("eval.bins", [])
    with pytest.raises(AssertionError):
        check_other(Command(1, ["rm", "-r", "x"], None))
    with pytest.raises(AssertionError):
        check_python("train.py", ["--config", "configs/no-such.yaml"])
    with pytest.raises(SystemExit):
        check_python("train.py", ["--no-such-option"])


# messages


def messages():
    """Every text in the code, with {} for what is filled in."""
    for _, path in draw_architecture.modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_quoted_in_troubleshooting_exist():
    """Its tables' first column quotes messages; `...` stands for something left out."""
    known = [*messages(), (ROOT / "scripts" / "make_venv.sh").read_text(encoding="utf-8")]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE)
    quoted = [quote for row in rows for quote in re.findall(r"`(.+?)`", row)]
    assert len(quoted) > 50
    patterns = {quote: re.compile(".*".join(map(re.escape, quote.split("..."))), re.DOTALL) for quote in quoted}
    assert not [quote for quote, pattern in patterns.items() if not any(map(pattern.search, known))]


# the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site; a warning while it is built would be an error."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder], cwd=ROOT, check=True)
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {page.stem for page in ROOT.glob("docs/*.md")}
    for path in [*pages, *site.rglob("*.css"), *site.rglob("*.svg")]:
        text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", text)
        loaded += re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", text)
        assert not loaded, path.name


def test_the_search_works_from_a_folder(site):
    """Without a server. The oracle: the pages that hold a rare word."""
    word = "Winograd"
    holding = {path.name for path in site.glob("*.html") if word in path.read_text(encoding="utf-8")}
    with chromium.open_browser() as browser:
        page = browser.new_page()
        page.goto((site / "index.html").as_uri())
        page.fill("#rtd-search-form input", word)
        page.keyboard.press("Enter")
        links = page.locator("#mkdocs-search-results a")
        links.first.wait_for()
        assert {each.get_attribute("href").split("/")[-1].split("#")[0] for each in links.all()} == holding
        page.fill("#mkdocs-search-query", word[:-2])  # while it is typed
        assert links.count() >= len(holding)
        page.fill("#mkdocs-search-query", "qqqqq<b>")
        assert page.inner_text("#mkdocs-search-results") == "No results found"
        page.fill("#mkdocs-search-query", word)
        links.first.click()
        assert word in page.inner_text("body")
