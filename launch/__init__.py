"""Thin programs over jaxcodesign: each parses, calls the library, shows and writes."""

import sys

from launch import outcome

if sys.argv[:1] == ["-m"]:  # as a program, whose imports take seconds from here on
  outcome.ready()
