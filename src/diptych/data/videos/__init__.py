"""Clips in files: which frames are taken, files that were cut off, layouts of video data sets, subtitles."""
