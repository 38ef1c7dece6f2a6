"""Recipes that ship with the package, a TOML file each."""
