"""``scenes:regions``: single objects with boxes, masks and referring phrases that fit exactly one of them."""
