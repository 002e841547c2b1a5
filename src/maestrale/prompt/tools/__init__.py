"""Tool calls: how each family of models writes them, found in the text as it streams.

`base.py` has the contract, `reading.py` what all parsers share. Most formats are a `Layout` (texts
around a name and arguments), which `probe.py` reads off a chat template; the others have a file
each. `pick.py` says which format a model has, `generic.py` tells of tools in plain text.
"""
