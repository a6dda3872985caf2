"""Transfer learning for your own pictures: a folder in, an evaluated classifier in one file out."""

__version__ = "0.1.0"
