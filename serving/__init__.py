"""How the world reaches us: the OpenAI-compatible API, search, and the commands that talk to them."""
