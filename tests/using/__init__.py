"""Serving, searching, classifying, tracing; the command line and its pages."""
