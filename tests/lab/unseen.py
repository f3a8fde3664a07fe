"""The mistakes of mutations.py that no notebook sees, each with the reason (see seen.py)."""

UNSEEN: dict[str, str] = {
    "compatibility-composition": "the notebooks' texts have no ligature and no half-width letter",
    "newer-unicode-than-python-s": "the notebooks' texts have none of the marks that Unicode moved lately",
    "depth-from-the-values-alone": "notebook 02 has pictures of 8 bits only",
    "crop-deficit-rounded-down": "notebook 02 crops no picture whose deficit is odd",
    "any-format-of-pillow": "the notebooks open PNG and JPEG only, and nothing hostile",
    "infinite-pixels": "the notebooks give the tower no infinite pixel; it is a check on bad input",
    "infinite-weights": "the notebooks load healthy files; it is a check on damaged ones",
    "centered-kernel-of-1-cropped": "no preset has a kernel of 1 at stride 2",
    "weights-stay-in-half-precision": "the shipped file is in float32 already",
    "first-text-cut-first": "the notebooks cut single texts only, as ALIGN does",
    "height-and-width-swapped-in-an-array": "no notebook gives a picture as an array with its channels first",
    "batch-counted-twice": "no notebook turns gradient checkpointing on",
    "head-masks-of-the-layers-reversed": "only a solution in notebook 05 gives a head mask",
    "chunks-without-their-random-state": "notebook 08's model has no dropout, or it could not compare",
    "held-temperature-clamped": "no notebook holds a temperature below 0.001",
    "header-s-size-believed": "no notebook opens a damaged tar",
}
