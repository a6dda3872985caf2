"""The page that shows what was learnt: one file, nothing loaded from outside."""
