"""Records to batches: feature stores, sources of images, resumable order."""
