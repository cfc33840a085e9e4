"""How fast everything is, on the machine it runs on: `python -m benchmarks.run`."""
