"""Explainers, targets, explanations, and how explanations are drawn."""
