"""What a model's outputs mean: kinds, their scales, names and targets."""
