"""Runs in the API server."""
