"""MuData ⇄ arrays: everything is read once and written once."""
