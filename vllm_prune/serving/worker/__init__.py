"""Runs on every rank."""
