"""A tokenizer's tokens, looked up in small steps.

The library's `get_vocab` keeps the interpreter's lock for a quarter of a second where there are
200,000 tokens, in which no other model of the process takes a step.
"""

import tokenizers


def read_vocabulary(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """The id of each token, added ones included: what `get_vocab` returns."""
    model = tokenizer.model
    added = tokenizer.get_added_tokens_decoder().values()
    count = tokenizer.get_vocab_size(with_added_tokens=False)
    count += sum(model.token_to_id(token.content) is None for token in added)
    found: dict[str, int] = {}
    for id in range(count):
        token = tokenizer.id_to_token(id)
        if token is None:
            break
        found[token] = id
    if len(found) < count:  # an id is left out, or stands for two
        return tokenizer.get_vocab(with_added_tokens=True)
    return found
