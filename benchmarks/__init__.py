"""What this project is measured by (`make bench`), and two scripts that break it on purpose."""
