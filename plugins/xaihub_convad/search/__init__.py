"""The causal search: pixels' responsibility from random partitions, and minimal sets of pixels that keep the target."""
