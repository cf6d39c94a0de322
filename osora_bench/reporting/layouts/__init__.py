"""One file a layout of a table."""
