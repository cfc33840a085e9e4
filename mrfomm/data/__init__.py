"""Clips, sampling, augmentation and the parallel loader. Nothing here imports nnabla: its workers use it."""
