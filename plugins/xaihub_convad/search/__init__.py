"""The causal search: responsibility of pixels from random partitions, and minimal sets of pixels that keep the target."""
