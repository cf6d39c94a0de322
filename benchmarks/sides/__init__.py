"""The processes that `benchmarks/sweep.py` measures: the plain way's two, and the harness's one."""
