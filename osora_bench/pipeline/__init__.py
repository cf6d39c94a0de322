"""One cell: preflight, train, evaluate, record."""
