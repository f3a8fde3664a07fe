"""From image-text pairs on disk to a trained model (ALIGN, sections 3 and 5).

README.md lists the files in reading order.
"""
