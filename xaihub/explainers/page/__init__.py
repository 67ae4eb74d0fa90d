"""Self-contained HTML pages: how explanations and reports become one file that opens offline."""
