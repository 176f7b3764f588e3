"""Decides, and touches nothing: no Redis, no clock, no files."""
