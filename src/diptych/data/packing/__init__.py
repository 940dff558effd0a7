"""Packed data: images resized once and kept in Arrow files that are mapped into memory, with all their texts beside them."""

from diptych.data.packing.pack import pack

__all__ = ["pack"]
