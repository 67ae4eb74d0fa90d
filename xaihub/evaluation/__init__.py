"""Evaluation: plan a run, execute it, store its scores, and report them."""

import logging

# Its records are for handlers of the program that uses it; without one, nothing is printed.
logging.getLogger("xaihub").addHandler(logging.NullHandler())
