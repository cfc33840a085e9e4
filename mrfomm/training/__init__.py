"""Training: losses, the step, what a run writes and shows."""
