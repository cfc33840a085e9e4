#!/bin/sh
# Where nnabla isn't: an environment of a newer CPython, what pip installs there, and the tests that need no nnabla.
# Frames are compared with those that nnabla draws in .venv. Usage: sh scripts/test_without_nnabla.sh [PYTEST OPTION ...]
set -eu
work=${WITHOUT_NNABLA:-.venv/without-nnabla}
newer='import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
for python in "${NEWER:-}" python3.14 python3.13 python3.12 python3.11 "$HOME"/.pyenv/versions/3.1[1-4]*/bin/python; do
    if [ -n "$python" ] && "$python" -c "$newer" 2>/dev/null; then break; fi
    python=
done
[ -n "$python" ] || { echo 'no CPython 3.11 to 3.14 found; name one: make test-without-nnabla NEWER=...' >&2; exit 2; }

mkdir -p "$work"
work=$(cd "$work" && pwd)
.venv/bin/python animate.py --backend nnabla --output "$work/expected"
"$python" -m venv --clear "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check '.[app]' pytest
"$work/venv/bin/python" -VV
"$work/venv/bin/python" -m pip list --disable-pip-version-check
# the wheel is tested, from where no checkout is in sight
rm -rf "$work/tests"
mkdir "$work/tests"
cp -r tests/without_nnabla "$work/tests"
cd "$work/tests"
MRFOMM_EXPECTED=$work/expected "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$@" without_nnabla
