"""Where and why a model is wrong: slices of the data, features that go with its scores, and what it knows but does not say."""
