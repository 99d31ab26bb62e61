"""What is known: documents, chunks, prompts, interactions, evaluations, alerts, the registry and its releases."""
