"""Dry run and live drain: by one worker, by several, by a timer."""
