"""Evaluation: plan a run, execute it, store its scores, and report them."""
