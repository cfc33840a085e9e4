"""Rendered talking heads with exact yaw, pitch and roll: data for training, and the paper's protocol for testing.

`python -m mrfomm.heads -o DIR` writes clips. See docs/heads.md for the label conventions. The rasteriser is compiled
by numba, which is in the extra ``cpu``: `pip install -c constraints.txt -e .[cpu]`.
"""
