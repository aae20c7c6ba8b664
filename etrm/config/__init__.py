"""Configuration: `compose` turns YAML files and overrides into one frozen, typed config; unknown keys are errors."""
