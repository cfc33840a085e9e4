"""Foreign checkpoints in: FOMM's of PyTorch, Sony's of nnabla, VGG19's and AlexNet's."""
