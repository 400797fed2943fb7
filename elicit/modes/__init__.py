"""Modes: each asks one kind of question and says what the answers mean."""
