"""What the data folder has of conf/data, and fetching what it lacks."""
