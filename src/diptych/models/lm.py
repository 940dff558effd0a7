LM: dict = {}
