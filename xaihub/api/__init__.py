"""Use cases, as called from Python and by the command line."""
