#!/bin/sh
# make_venv.sh DIR: make the virtual environment DIR with CPython 3.10, the last that nnabla has wheels for.
# Run from the top of the checkout.
#
# Taken is the first that fits of: $PYTHON (alone, if set); the version in .python-version under pyenv;
# python3.10, python3, python on PATH; any 3.10 under pyenv; uv, which may download one.
# A fitting environment in DIR is kept unless $PYTHON is set. Exit code 2 if there is no such Python.
set -eu
dir=$1

usable() {
    "$1" -c '
import sys, ensurepip, venv
sys.exit(sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 10))
' >/dev/null 2>&1
}

# The finders below leave the interpreter in $python.
in_pyenv() { # called by path: pyenv's shims fail for versions that are installed but not active
    root=$(pyenv root 2>/dev/null) || return 1
    for python in "$root/versions/$1"/bin/python "$root/versions/$1".*/bin/python; do
        if usable "$python"; then return; fi
    done
    return 1
}

on_path() {
    for python in python3.10 python3 python; do
        if usable "$python"; then return; fi
    done
    return 1
}

find_python() {
    in_pyenv "$(cat .python-version)" || on_path || in_pyenv 3.10
}

if [ -n "${PYTHON:-}" ]; then
    if ! usable "$PYTHON"; then
        echo "error: PYTHON=$PYTHON does not run, is not CPython 3.10, or lacks venv and ensurepip" >&2
        exit 2
    fi
    "$PYTHON" -m venv --clear "$dir"
elif usable "$dir/bin/python" && "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    :
elif find_python; then
    "$python" -m venv --clear "$dir"
elif rm -rf "$dir" && command -v uv >/dev/null && uv venv --quiet --seed --python 3.10 "$dir"; then
    :
else
    cat >&2 <<'END'
error: no CPython 3.10 with venv found, and nnabla 1.39 has wheels for none newer. Any one of these helps:
  pyenv install 3.10
  pip install uv                          (make venv then lets uv download Python 3.10)
  apt-get install python3.10-venv         (where the distribution has it)
  make venv PYTHON=/path/to/python3.10
END
    exit 2
fi
echo "$dir: $("$dir/bin/python" -V)"
