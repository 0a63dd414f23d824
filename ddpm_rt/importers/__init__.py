"""Readers of other projects' models: a file or a mapping of theirs becomes what `ddpm_rt.export` makes plans of.

Each source is one module. Nothing here runs code from a file: pickles are read by restricted unpicklers only.
"""
