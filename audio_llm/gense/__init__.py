"""GenSE: speech enhancement by token language models, and the small mask network beside it."""
