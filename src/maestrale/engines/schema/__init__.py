"""JSON schemas as grammars: what a value may be, and how a model may write it down."""
