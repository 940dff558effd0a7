"""Sources that are a part of another one."""
