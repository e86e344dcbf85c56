"""Helpers without geometry: registry, argument checks, errors, files and text."""
