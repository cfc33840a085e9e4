"""A short run of the fuzzer (see fuzz.py, which is also a command), and that it notices what it is there to notice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")

# A command that does whatever its argument is, as Python code
BAD = "import sys, os, time\ndef main(arguments):\n    exec(arguments[0])\n    return 0\n"
ENDLESS = ("time.sleep(3600)", "while True: pass")
FAULTS = {
    "raise KeyError('x')": "exit code 1",
    "sys.exit(3)": "exit code 3",
    "os.abort()": "SIGABRT",
    "print('careful', file=sys.stderr)": "says: careful",
    "print('error: one line that says enough', file=sys.stderr); sys.exit(2)": None,
    "print('first\\nerror: second of two', file=sys.stderr); sys.exit(2)": "2 lines",
    "sys.exit(2)": "0 lines",
    **dict.fromkeys(ENDLESS, "took more than"),
    "open('in/x', 'w').close()": "changed: in/x",
    "open('/var/tmp/mrfomm-fuzz', 'a').close(); os.remove('/var/tmp/mrfomm-fuzz')": "audit: open",
    "open('out/.x.partial', 'w').close()": "half-written",
    "os.remove('out/earlier.txt')": "lost: out/earlier.txt",
    "open('out/x', 'w').close(); print('error: ' + 20 * 'x', file=sys.stderr); sys.exit(2)": "left: out/x",
    "bytearray(2200 << 20)": "MB",
    "bytearray(8 << 30)": None,  # "not enough memory" in one line
    "import subprocess; subprocess.run(['true'])": "audit: subprocess.Popen",
    "import subprocess; subprocess.Popen([sys.executable, '-c', 'while 1: pass'])": "left processes behind",
    "import socket; socket.create_connection(('127.0.0.1', 9))": "audit: socket.connect",
}


def test_a_short_run(tmp_path):
    command = [sys.executable, SCRIPT, "--cases", "60", "--seed", "1000", "--seconds", "600", "--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert {row["code"] for row in rows} <= {0, 2, 130}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Fault -> problems that the fuzzer finds."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "bad_command.py").write_text(BAD)
    (folder / "faults.json").write_text(json.dumps(list(FAULTS)))
    code = f"""
import sys
sys.path[:0] = [{str(folder)!r}, {str(SCRIPT.parent)!r}]
import json, pathlib, fuzz
fuzz.COMMANDS["animate"] = "bad_command"
faults = json.loads(pathlib.Path({str(folder)!r}, "faults.json").read_text())
for number, fault in enumerate(faults):
    box = pathlib.Path({str(folder)!r}, str(number))
    for part in ("in", "out", "tmp", "home"):
        (box / part).mkdir(parents=True)
    (box / "out" / "earlier.txt").write_text("earlier")
    case = fuzz.fuzz_cases.Case("test", "animate", (fault,), "fault")
    limit = 2 if fault in {ENDLESS!r} else 600
    print("problems", json.dumps(fuzz.fork_case(case, box, limit, True).problems))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("problems")]
    return dict(zip(FAULTS, (json.loads(line[9:]) for line in lines)))


@pytest.mark.parametrize(("fault", "problem"), FAULTS.items())
def test_what_the_fuzzer_notices(verdicts, fault, problem):
    problems = verdicts[fault]
    assert any(problem in found for found in problems) if problem else not problems, problems
