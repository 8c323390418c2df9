"""What every part of the package may use: no part of it knows another part."""
