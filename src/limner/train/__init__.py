"""Training of models by recipes. Needs PyTorch; importing this file does not."""
