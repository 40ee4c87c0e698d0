"""Speech to one stream of acoustic codes and back."""
