"""Image-text pairs: raw files, published sets, features and their files, sample data."""
