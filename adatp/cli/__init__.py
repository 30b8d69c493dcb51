"""The command line. Each command is a module; `options` holds what several of them share."""
