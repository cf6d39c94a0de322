"""Many cells: in this process, in several, as jobs."""
