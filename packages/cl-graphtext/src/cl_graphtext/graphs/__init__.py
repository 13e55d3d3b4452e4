"""Graphs whose nodes carry text: what they are, how they are read, disturbed, sampled and encoded."""
