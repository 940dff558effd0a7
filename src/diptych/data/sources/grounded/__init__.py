"""Sources of boxes, masks and phrases from the files of published data sets."""
