"""Recordings into clips: which files, where faces are, what is cut, and the list of what was done."""
