"""Sources to index, question to chunks, chunks to a grounded answer with checked citations."""
