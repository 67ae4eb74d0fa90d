"""The functions that Python users and the command line call."""
