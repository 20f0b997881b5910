"""What a node keeps on disk: one LevelDB (chain, state, safety record) and a folder of blobs."""
