"""The subcommands of ``python -m klora``: ``klora.__main__`` names them. Each module has
``add_arguments`` and ``run``."""
