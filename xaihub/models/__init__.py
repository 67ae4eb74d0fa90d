"""Models: building, preprocessing, structure, weights and cards."""
