"""Tasks on clips, each with what is left of a score if the order of the frames, or all frames but one, are taken away."""
