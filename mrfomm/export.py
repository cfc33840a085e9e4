"""`python -m mrfomm.export`: a short name for ``python -m mrfomm.commands.export``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("mrfomm.commands.export", run_name="__main__", alter_sys=True)
