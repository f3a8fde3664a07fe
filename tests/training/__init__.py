"""Pairs, filters, LAMB, large batches and whole runs."""
