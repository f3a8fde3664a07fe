"""The tokenizer, the image processor and the processor that joins them."""
