"""Callbacks that come with the package, one idea per file."""
