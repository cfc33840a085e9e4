"""Where and by whom things are computed: contexts, processes, threads."""

CONTEXTS = ("auto", "cpu", "cudnn")  # what --context takes; here, as parsers need no nnabla
