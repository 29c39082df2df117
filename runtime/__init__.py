"""The processes of a defender: supervisor, fork server, workers, and the command line."""

__version__ = "0.1.0"
