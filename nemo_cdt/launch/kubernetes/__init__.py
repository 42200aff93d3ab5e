"""Runs as jobs of Kubernetes."""
