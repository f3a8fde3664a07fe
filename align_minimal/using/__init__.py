"""What is done with a trained model: serving, search, classification, a look inside (ALIGN, 5 and 7)."""
