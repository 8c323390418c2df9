"""The network of an architecture as files that need nothing of this package."""
