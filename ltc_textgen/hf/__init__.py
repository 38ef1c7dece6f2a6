"""The code that depends on transformers: configuration, model, generation, sharing, registration."""
