"""What keeps a promise to the user and is not the idea: checks, file formats, where files come from.

Nothing here needs to be read to understand ALIGN. The files of the reading path, one folder up, call it.
"""
