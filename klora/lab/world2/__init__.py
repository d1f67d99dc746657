"""World 2: kinds that the base model knows, individuals of them, and styles learnt from a few drawings."""
