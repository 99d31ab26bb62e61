"""The vector index: one protocol, Qdrant Edge in process, Qdrant server by URL, published snapshots."""
