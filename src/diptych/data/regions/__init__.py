"""Boxes, masks and points of pictures: where they lie after crops and flips, how they are written, stored and drawn.

The one convention within Diptych: a box is left, top, right, bottom in pixels of its picture, from the upper left corner of the
first pixel (0, 0) to the lower right corner of the last (width, height); a mask is bool [height, width] of the whole picture; a
point is x, y in pixels. In a batch, boxes and points are shares of the square that a model reads.
"""
