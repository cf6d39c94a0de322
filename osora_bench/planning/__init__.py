"""Configuration -> cells: types and checks, composition, grids, run ids, states."""
