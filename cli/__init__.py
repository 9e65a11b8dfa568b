"""The command line: one short file per command, installed as multipde.cli. Only this package imports tyro."""
