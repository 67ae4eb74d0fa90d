"""Plugin management: installation, single-file plugins, project templates, overview and conformance checks."""
