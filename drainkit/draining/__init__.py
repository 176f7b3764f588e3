"""Dry run and live drain: by hand or by a timer."""
