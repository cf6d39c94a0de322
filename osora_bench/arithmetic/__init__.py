"""Word problems of one to three steps in GSM8K's format, made from a seed (docs/data.md)."""
