"""From a raw pool to data worth training on: operators score rows, rules decide, and every removal has its reason."""
