"""Language models: word n-grams and a small character Transformer."""
