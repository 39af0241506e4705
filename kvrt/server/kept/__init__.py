"""Answers that are kept, for their own workspace alone.

exact       for who asks the very same again
similar     for who asks nearly the same, and says that this will do
source      whose they are
asking      asks the model, unless one of them will do
route       forgets them
"""
