"""Maintenance of the repository, outside the package: generated documentation, shipped classifiers, searches."""
