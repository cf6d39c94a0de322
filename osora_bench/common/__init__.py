"""What every room uses: errors, exit statuses, files, paths, claims, fingerprints, signals."""
