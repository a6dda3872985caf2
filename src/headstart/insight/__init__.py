"""Questions about a classifier and its data, answered from cached features and rows per picture."""
