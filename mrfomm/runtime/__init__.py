"""Where and by whom things are computed: contexts, processes, threads."""
