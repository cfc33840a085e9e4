"""FOMM and the fusion unit in plain numpy, in double precision: the oracle of the tests. Clear, not fast.

Written from the paper, FOMM's PyTorch code and PyTorch's documentation, apart from the code under test. No module but
``graphs``, which drives nnabla, knows of mrfomm.
"""
