"""Which models may draft for which, and what part of a model a draft takes."""

from kvrt.errors import ConfigError
from kvrt.model.loader import Model
from kvrt.model.weights.weights import weights_of


def check_drafter(drafter: Model, model: Model) -> None:
    """Raise `ConfigError` if the two do not mean the same by a token, or if the one that drafts
    cannot follow its texts."""
    if drafter.spec.recurrence is not None:
        raise ConfigError(
            f"draft_model {drafter.name} has recurrent layers, which cannot go back to before a"
            " draft that did not come true",
            fix="take one with attention alone",
        )
    if drafter.max_model_len < model.max_model_len:
        raise ConfigError(
            f"draft_model {drafter.name} can follow {drafter.max_model_len:,} tokens, and texts may"
            f" have {model.max_model_len:,}",
            fix=f"give max_model_len={drafter.max_model_len}, or another draft_model",
        )
    if why := _difference(drafter, model):
        raise ConfigError(
            f"draft_model {drafter.name} cannot draft for {model.name}: {why}",
            fix="take a smaller model of the same family, with the same tokenizer",
        )


def predictor_ratio(model: Model) -> float:
    """How large a model's predictor is, beside what a token is computed with without it; in
    numbers."""
    spec = model.spec
    behind = len(spec.layers)
    whole = own = 0
    for weight in weights_of(spec):
        size = sum(part.numel for part in weight.parts)
        if weight.of_experts and spec.experts is not None:
            size = size * spec.experts.router.chosen // spec.experts.count
        if weight.layer == behind or weight.field == ("embedding" if spec.tied else "head"):
            own += size
        if weight.layer != behind:
            whole += size
    return own / whole


def _difference(drafter: Model, model: Model) -> str:
    own, other = drafter.spec.vocab, model.spec.vocab
    if drafter.tokenizer is None or model.tokenizer is None:
        counts = f"its vocabulary has {own:,} tokens, and the model's {other:,}"
        return "" if own == other else counts
    for token in range(max(own, other)):
        first, second = drafter.tokenizer.token(token), model.tokenizer.token(token)
        if first != second:
            return f"its vocabulary is another: token {token} differs"
    return ""
