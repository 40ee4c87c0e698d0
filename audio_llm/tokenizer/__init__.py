"""Speech to semantic tokens: what is said, with little of who says it and where."""
