"""Vega-Lite specifications of every figure; one specification serves the page and the figure files."""
