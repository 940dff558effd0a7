"""Where data and weights come from, under what terms they are, and what their computation emitted: for model cards and sheets."""
