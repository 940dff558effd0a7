"""Dual encoders as ONNX: written from torch, checked against it (``certificate``), and run without it (``runtime``, ``open``)."""
