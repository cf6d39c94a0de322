"""What an output says, read by this project's own rules, and whether that is the reference."""
