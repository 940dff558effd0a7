"""Every item of a task with the answers of two models: who is right where the other is not, by slice, with a test and a link."""
