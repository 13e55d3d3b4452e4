"""Short texts: tables of them, text encoders with a cache, language models and their answers."""
