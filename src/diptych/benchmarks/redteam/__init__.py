"""Red teaming: kinds of harm and probes as data (YAML, apart from the code), their reader, the classes of answers, and the task."""
