"""Training in torch: augmentation, the loop, checkpoints, and the way back to ONNX."""
