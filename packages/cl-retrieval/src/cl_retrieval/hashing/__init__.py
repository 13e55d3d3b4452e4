"""Hash functions of features: heads, objectives, training, baselines, evaluation. Shared by the methods."""
