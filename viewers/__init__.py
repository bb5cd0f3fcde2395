"""Scipion viewers of the plugin."""
