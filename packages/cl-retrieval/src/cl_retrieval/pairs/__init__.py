"""Image-text pairs: raw files, published sets, features and their files, sample data."""

from cl_retrieval.pairs.features import Origin, PairFeatures, read_features, write_features

__all__ = ["Origin", "PairFeatures", "read_features", "write_features"]
