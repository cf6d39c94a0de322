"""One training in several processes that share the weights."""
