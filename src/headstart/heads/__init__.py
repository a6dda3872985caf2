"""What stands on the backbone: fitting it, choosing it, and writing it as graph nodes."""
