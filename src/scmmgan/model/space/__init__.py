"""Features ⇄ model space."""
