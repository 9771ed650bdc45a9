"""Offline data preparation, on a CPU and without torch: genomics files to WebDataset shards and task tables."""
