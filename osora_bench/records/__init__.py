"""What a cell leaves for good, and which code made it."""
