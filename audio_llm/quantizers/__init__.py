"""Vector quantizers for tokenizers and codecs: continuous vectors to codes and back."""
