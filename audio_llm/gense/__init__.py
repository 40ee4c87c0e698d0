"""GenSE: speech enhancement by token language models, and a small mask network."""
