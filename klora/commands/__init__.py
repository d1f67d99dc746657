"""The subcommands of ``python -m klora``: each module has ``add_arguments`` and ``run``."""
