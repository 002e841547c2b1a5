"""The forms in which a model's weights can be kept, and the operation that one of them needs."""
