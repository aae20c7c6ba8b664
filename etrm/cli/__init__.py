"""The `etrm` command: thin sub-commands over the library and the pytest lanes, named in `main.COMMANDS`."""
