"""SVG and HTML primitives of all reports."""
