"""The CPU engine: from the file to the logits, with nothing between.

`engine.py` is the step loop; `kernel/` computes; `architectures/` and `weights/` tell it of what.
"""
