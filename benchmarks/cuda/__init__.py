"""What `make bench DEVICE=cuda` measures, at the size of 7B models with random weights."""
