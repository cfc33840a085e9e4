"""--help of every command: one screen of 80 columns, with defaults."""

import argparse
import importlib
import re

import pytest

COMMANDS = (
    "mrfomm.commands.animate",
    "mrfomm.commands.reconstruct",
    "mrfomm.commands.train",
    "mrfomm.app.__main__",
    "mrfomm.convert",
    "mrfomm.data.prepare",
    "mrfomm.export",
    "mrfomm.heads.__main__",
    "mrfomm.provenance",
    "eval.__main__",
    "eval.bins",
    "eval.pose",
    "eval.reconstruction",
    "eval.report",
    "benchmarks.run",
)
LINES = 40
NO_DEFAULT = {  # what happens without these needs no word
    "--calibration",
    "--data",
    "--generated",
    "--identity-weights",
    "--init",
    "--labels",
    "--masks",
    "--openface-weights",
    "--quantize",
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
    with pytest.raises(ParserError) as caught:
        importlib.import_module(request.param).parse_arguments([])
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
