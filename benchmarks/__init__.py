"""How fast everything is, on the machine it runs on: `python -m benchmarks.run`."""

import mrfomm  # noqa: F401 - before nnabla, which would announce itself
