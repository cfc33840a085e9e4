"""`python -m mrfomm.provenance`: a short name for ``python -m mrfomm.media.provenance``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("mrfomm.media.provenance", run_name="__main__", alter_sys=True)
