"""Features that plug into the core. Each folder is a plugin of its own and imports nothing but the core."""
