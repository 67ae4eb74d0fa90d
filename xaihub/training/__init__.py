"""Training: data, optimiser, schedule, checkpoints and the loop; an objective says what is minimised."""
