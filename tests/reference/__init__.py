"""What Hugging Face computed (golden numbers and what made them), and the comparison with it."""
