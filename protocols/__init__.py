"""Scipion protocols of the plugin."""
