"""Upkeep of the repository, outside the package: generated documentation, the shipped classifiers, searches."""
