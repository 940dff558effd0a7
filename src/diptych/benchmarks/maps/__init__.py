"""Whether maps tell the truth: pointing, insertion and deletion on scenes with exact masks, against maps that know nothing."""
