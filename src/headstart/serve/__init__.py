"""`headstart serve`: classifiers behind HTTP. Needs the extra `serve`; imports neither torch nor scikit-learn."""
