"""Thin programs over jaxcodesign: each parses, calls the library, shows and writes."""
