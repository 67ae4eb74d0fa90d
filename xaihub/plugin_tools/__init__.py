"""Tools for plugins: installing, single files, scaffolding, overview, conformance."""
