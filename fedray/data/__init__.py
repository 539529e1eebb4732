"""Where images come from and who holds them: sources, splits, partitions and cached features."""
