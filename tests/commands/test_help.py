"""--help of every command: one screen of 80 columns, with defaults, under the name it was started by, without docs."""

import argparse
import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mrfomm.__main__ as overview

ROOT = Path(__file__).parent.parent.parent

COMMANDS = (
    "mrfomm.commands.animate",
    "mrfomm.commands.reconstruct",
    "mrfomm.commands.train",
    "mrfomm.app.__main__",
    "mrfomm.convert.__main__",
    "mrfomm.data.prepare",
    "mrfomm.commands.export",
    "mrfomm.commands.doctor",
    "mrfomm.heads.__main__",
    "mrfomm.media.provenance",
    "eval.__main__",
    "eval.bins.__main__",
    "eval.pairs",
    "eval.pose",
    "eval.reconstruction.__main__",
    "eval.report",
    "benchmarks.run",
)
LINES = 40
NO_DEFAULT = {  # what happens without these needs no word
    "--data",
    "--generated",
    "--identity-weights",
    "--init",
    "--labels",
    "--masks",
    "--openface-weights",
    "--resume",
    "--set",
    "--vox-metadata",
}


class ParserError(Exception):
    """Carries the parser."""


@pytest.fixture(params=COMMANDS)
def parser(request, monkeypatch):
    """The command's ArgumentParser, caught before it parses."""

    def catch(self, *_):
        raise ParserError(self)

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", catch)
    module = importlib.import_module(request.param)
    with pytest.raises(ParserError) as caught:
        getattr(module, "parse_arguments", module.main)([])
    return caught.value.args[0]


def test_help_fits_a_screen(parser):
    lines = parser.format_help().splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 80


def test_help_says_what_comes_without_the_option(parser):
    """A plain default stands in brackets as it is, any other in words."""
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0 or action.required:
            continue
        text = formatter._expand_help(action)
        if isinstance(action.default, (str, int, float)):
            assert re.search(rf"\({re.escape(str(action.default))}\b", text), text
        elif action.option_strings[0] not in NO_DEFAULT:
            assert re.search(r"\(.+\)", text), (action.option_strings, text)


def run(*words, folder=ROOT, **environment):
    """Run Python; returns its standard output."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "COLUMNS": "80", **environment}
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


INSTALLED = "import sys; sys.argv[0] = '/bin/mrfomm-eval'; from eval.__main__ import command; command()"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["animate.py"], "python animate.py"),
        (["-m", "mrfomm", "heads"], "python -m mrfomm heads"),
        (["-m", "mrfomm", "bins"], "python -m mrfomm bins"),
        (["-c", INSTALLED.replace("eval", "mrfomm").replace("-mrfomm", ""), "export"], "mrfomm export"),
        (["-m", "mrfomm.app"], "python -m mrfomm.app"),
        (["-m", "mrfomm.media.provenance"], "python -m mrfomm.provenance"),
        (["-m", "eval", "report"], "python -m eval report"),
        (["-c", INSTALLED, "report"], "mrfomm-eval report"),
    ],
)
def test_the_name_is_the_one_it_was_started_by(words, name):
    assert run(*words, "--help").startswith(f"usage: {name} ")


def test_the_packages_own_name_lists_every_command():
    """And each is there; eval is not of the package, so its commands are found by name."""
    listed = re.findall(r"^  (\w+) {2,}\S", run("-m", "mrfomm"), re.MULTILINE)
    own = {name.removesuffix(".__main__").rpartition(".")[2] for name in COMMANDS if not name.startswith("benchmarks")}
    assert own - {"eval"} <= set(listed)
    for name in listed:
        assert "--help" in run("-m", "mrfomm", name, "--help"), name


@pytest.mark.parametrize("words", [["no-such-command"], ["--no-such-option"], ["export"]])
def test_a_wrong_command_line_exits_with_2(words):
    done = subprocess.run([sys.executable, "-m", "mrfomm", *words], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_without_eval_there_are_the_other_commands(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "eval" in name else find(name))
    assert not list(overview.scores())


def test_output_has_one_name(parser):
    """-o and --output, wherever there is an output; what was --out before still is."""
    outputs = [action for action in parser._actions if "-o" in action.option_strings or action.dest == "output"]
    assert all(action.option_strings == ["-o", "--output"] for action in outputs)
    assert not any(action.dest == "out" for action in parser._actions)


def test_help_lines_stand_by_themselves(parser):
    """None goes on from the option's name, as "of one upload" did, and every argument has one."""
    for action in parser._actions:
        assert action.help, action.dest
        assert not re.match(r"(of (?!K)|from|to|at|with|also)\b", action.help), action.help


def test_the_old_spelling_of_output_is_taken(parser):
    """--out, and it isn't shown."""
    if not any(action.dest == "output" for action in parser._actions):
        return
    assert "--out " not in parser.format_help()
    assert parser.parse_known_args(["input", "--out", "x"])[0].output in ("x", Path("x"))


WITHOUT_DOCS = """
import contextlib, importlib, io, sys, tiny
assert False  # is not run
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        module = importlib.import_module(name)
        getattr(module, "parse_arguments", module.main)(["--help"])
    if "--help" not in text.getvalue():
        raise ValueError(name)
from eval import reconstruction
from mrfomm.commands import animate
tiny.checkpoint("weights")
animate.main(["--weights", "weights", "--output", "result.mp4", "--backend", "nnabla", "--context", "cpu"])
reconstruction.main(["--landmarks", "none", "--identity", "none"])
"""


@pytest.mark.slow
def test_without_docstrings_and_assertions(tmp_path):
    """As python -OO runs them: every help, and the commands at work."""
    run("-c", WITHOUT_DOCS, *COMMANDS, folder=tmp_path, PYTHONOPTIMIZE="2")
    assert (tmp_path / "result.mp4").stat().st_size > 1000
    assert "L1D" in (tmp_path / "reconstruction-scores" / "table.md").read_text()


def test_nothing_hangs_on_an_assertion():
    """python -O leaves them out."""
    for folder in ("mrfomm", "eval", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not any(isinstance(node, ast.Assert) for node in nodes), path
