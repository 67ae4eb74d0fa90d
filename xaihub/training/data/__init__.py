"""Training data: where labelled images come from, how they are split, augmented and batched."""
