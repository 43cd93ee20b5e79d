"""Runs in the engine core."""
