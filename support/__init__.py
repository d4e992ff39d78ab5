"""Imported first by every script, before torch: Ctrl-C while modules load is no stack trace."""
import sys

sys.excepthook = lambda kind, *what: kind is KeyboardInterrupt or sys.__excepthook__(kind, *what)
