"""Published systems as data: one TOML file each, and the runner that puts the paper beside the model."""
