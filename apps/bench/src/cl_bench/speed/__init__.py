"""Speed of every method beside its peers."""
