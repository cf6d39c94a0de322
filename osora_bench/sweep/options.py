"""How the cells of a sweep are run."""

RETRIES = 1
"""How often a cell is started again whose process or job was killed, if nothing else is said."""
WAIT = 24 * 60
"""Minutes that a start waits for jobs of which nothing moves, if nothing else is said."""
