"""Models: adapters, preprocessing, layer structure, weights and cards."""
