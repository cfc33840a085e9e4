"""`python -m mrfomm.doctor`: a short name for ``python -m mrfomm.commands.doctor``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("mrfomm.commands.doctor", run_name="__main__", alter_sys=True)
