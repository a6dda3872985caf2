"""Pretrained networks as ONNX graphs: RGB picture of any size in, feature maps of several layers out."""
