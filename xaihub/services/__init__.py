"""Use cases: names and images in, results out; nothing here prints or parses."""
