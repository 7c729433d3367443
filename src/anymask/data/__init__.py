"""Files to types and back: images and datasets in, results and drawings out."""
