"""Records -> pages: one HTML file each, which needs nothing beside it."""
