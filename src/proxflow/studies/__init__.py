"""Reproducible studies, one folder each: trials compared under the same conditions, and a report on them."""
