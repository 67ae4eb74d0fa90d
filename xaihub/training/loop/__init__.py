"""The training loop: optimizer, steps, epochs and checkpoints."""
