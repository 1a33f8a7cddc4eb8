"""Hardware that plugs in, a folder each. They import only the core, and never see one another."""
