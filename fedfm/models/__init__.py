"""Examples to logits: the body, what enters it, what leaves it, and which tensors train."""
