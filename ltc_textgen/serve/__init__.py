"""The server: an OpenAI-compatible HTTP API over one engine thread with continuous batching, and its page."""
