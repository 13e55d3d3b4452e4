"""Claims of every method: what it is compared with, on what, and by how much it has to be better."""
