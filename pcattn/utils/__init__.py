"""Shared helpers: registries, argument checks, errors, files, processes, text, and triangle surfaces."""
