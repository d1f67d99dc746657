"""Random jobs on a real WebUI, for a long time: see ``__main__.py``."""
