"""Runs the notebooks in kernels, writes the report, closes the evidence."""
