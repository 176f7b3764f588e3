"""Seal a run's folder, verify it later, sign it."""
