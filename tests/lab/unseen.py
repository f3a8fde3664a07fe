"""The mistakes of mutations.py that no notebook sees, each with the reason (see seen.py)."""

UNSEEN: dict[str, str] = {}
