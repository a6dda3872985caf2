"""Training of the network itself, from a fitted head on; needs the extra `headstart[torch]`."""
