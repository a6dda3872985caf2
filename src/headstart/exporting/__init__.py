"""A classifier in other shapes than its own file, each compared with it before it is written."""
