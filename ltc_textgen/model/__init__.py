"""The network: token ids to hidden vectors to logits, and the state it carries."""
