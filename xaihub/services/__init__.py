"""Use cases: names and pictures in, results out; nothing here prints or parses."""
