"""Clean sound to hard sound: noise, rooms, levels."""
