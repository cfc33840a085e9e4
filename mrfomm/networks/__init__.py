"""Networks as functions of nnabla Variables and plain numbers: no IO, no configuration object, no communicator."""
