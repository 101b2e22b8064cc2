"""One training run: the step, the loop around it, validation and checkpoints."""
