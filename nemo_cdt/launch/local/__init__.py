"""Runs of this machine's processes."""
