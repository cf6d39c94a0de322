"""Rows -> charts, as Vega-Lite specifications: the page shows them, figures.py draws them."""
