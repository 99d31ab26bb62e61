"""Language models behind one chat protocol: llama.cpp, any OpenAI-compatible endpoint, Transformers, scripted."""
