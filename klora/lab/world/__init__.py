"""What is drawn: kinds that the base model knows, individuals of them, strangers, and the styles."""
