"""Packed data: images resized once and kept, with all their texts, in Arrow files that are mapped into memory."""

from diptych.data.packing.pack import pack

__all__ = ["pack"]
