"""Say what this machine has and whether it computes what it should: `python -m mrfomm.doctor`."""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from mrfomm.commands.machine import LOOKS
from mrfomm.errors import UserError, as_called_here, command_parser, run_command

if TYPE_CHECKING:
    from mrfomm.commands.trial import Trial

INSTALL = "install it again: pip install -e ."
REMEDIES = {  # for what computes; the first, nnabla's own functions on the CPU, is what the others are compared with
    "nnabla": INSTALL,
    "CPU operators": "set MRFOMM_CPU_OPERATORS=0",
    "onnxruntime": "use --backend nnabla",
    "cudnn": "use --context cpu",
}
MOST = {"grey levels": 1.0, "losses": 1e-3, "gradient": 1e-2}  # of difference; a sound CPU has a hundredth of each
_LEAST_LOSS = 0.01  # a loss's difference is divided by this at least, as some losses are but rounding


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = command_parser(__doc__, epilog="Exit code 0: ok; 1: something is wrong.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    as_json, problems = parse_arguments(arguments).json, list[str]()
    if sys.version_info >= (3, 11):
        raise UserError("the doctor examines nnabla, which has no release for this Python; animate.py works without")
    machine, trials = dict.fromkeys(LOOKS, ""), dict[str, "Trial"]()
    for name, (look, extra) in LOOKS.items():
        with _noting(name, INSTALL + extra, problems):
            machine[name] = look()
    for name in (name for name in REMEDIES if machine["nnabla"] and machine[name]):
        print(f"computing: {name}", file=sys.stderr)
        with _noting(name, REMEDIES[name], problems):
            trials[name] = _apart(name)
    computed = {name: numbers(trial, trials["nnabla"]) for name, trial in trials.items() if "nnabla" in trials}
    problems += [line for name in computed for line in complaints(name, computed[name])]
    report = {"machine": machine, "computed": computed, "problems": problems, "ok": not problems}
    print(json.dumps(report, indent=1) if as_json else "\n".join(_lines(machine, computed, problems)))
    return int(bool(problems))


@contextlib.contextmanager
def _noting(name: str, remedy: str, problems: list[str]) -> Iterator[None]:
    """Turn an exception into a line; ``remedy`` is for those that name none."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, UserError)
        text = str(error) if known else as_called_here(f"{type(error).__name__}: {error}; {remedy}")
        problems.append(f"{name}: {' '.join(text.split())}")


def _apart(name: str) -> "Trial":
    """A Trial in a process of its own, which some failures end."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_attempt, name).result()


def _attempt(name: str) -> "Trial":
    from mrfomm.commands.trial import attempt

    os.dup2(2, 1)  # what libraries print is no JSON
    return attempt(name)


def numbers(found: "Trial", expected: "Trial") -> dict[str, float]:
    """Seconds, and the largest differences: of pictures in grey levels, of losses and gradients as shares."""
    result = {**found.seconds, "grey levels": 255 * float(abs(found.pictures - expected.pictures).max())}
    if found.losses:
        shares = [abs(found.losses[name] - loss) / max(loss, _LEAST_LOSS) for name, loss in expected.losses.items()]
        result.update(losses=max(shares), gradient=abs(found.gradient / expected.gradient - 1))
    return result


def complaints(name: str, found: dict[str, float]) -> Iterator[str]:
    """A line on differences that are too large, if any are."""
    wrong = ", ".join(f"{each} {found[each]:.2g}" for each in MOST if found.get(each, 0) > MOST[each])
    if wrong:
        yield f"{name}: differs from nnabla's own functions ({wrong}); {REMEDIES[name]}, and report it"


def _lines(machine: dict[str, str], computed: dict[str, dict[str, float]], problems: list[str]) -> Iterator[str]:
    yield from (f"{name:<15}{text or '-'}" for name, text in machine.items())
    columns = ("frame", "step", *MOST)
    yield f"\n{'in seconds':<15}" + "".join(f"{column:>13}" for column in columns)
    for name, found in computed.items():
        yield f"{name:<15}" + "".join(f"{found[each]:>13.2g}" if each in found else f"{'-':>13}" for each in columns)
    yield "\n" + "\n".join(problems or ["ok"])


if __name__ == "__main__":
    run_command(main)
