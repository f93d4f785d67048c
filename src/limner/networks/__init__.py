"""Network blocks: tensors in, tensors out. Its modules need PyTorch; this file does not."""
