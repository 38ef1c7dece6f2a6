"""Code that several benchmark scripts use."""
