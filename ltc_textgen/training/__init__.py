"""Training: the loop, its optimiser, schedule and checkpoints."""
