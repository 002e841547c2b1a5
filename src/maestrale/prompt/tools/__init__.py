"""Tool calls: how each family of models writes them, found in the text as it streams.

`base.py` has the contract, one file each format; `pick.py` says which format a model has.
"""
