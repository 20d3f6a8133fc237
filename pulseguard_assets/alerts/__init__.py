"""Incidents, and telling people of them.

Belongs here: what is wrong as rows of `incidents`, messages about it, and the channels they go by.
Does not: looking for what is wrong, nor when to look (`automation/`).
"""
