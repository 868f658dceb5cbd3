"""Floor 1: the networks, one paper a file; `zoo` is the table of what exists."""
