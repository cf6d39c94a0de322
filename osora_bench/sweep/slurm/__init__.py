"""Cells as SLURM jobs."""
