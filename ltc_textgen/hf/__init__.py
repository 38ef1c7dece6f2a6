"""Everything that knows transformers: configuration, model, generation, sharing, registration."""
