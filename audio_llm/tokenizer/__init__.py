"""Speech to semantic tokens: the content, with little of speaker and environment."""
