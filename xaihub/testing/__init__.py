"""Conformance checks for plugins, and the toys that they run on."""
