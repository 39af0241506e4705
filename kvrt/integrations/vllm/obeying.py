"""What vLLM does when somebody outside asks it to, through the ledger of a share (`kvrt ctl`)."""

from kvrt.errors import KvrtError
from kvrt.integrations.vllm.balloon import Balloon
from kvrt.sharing.orders import Outcome, Verb
from kvrt.sharing.tenant import Tenant


def obey(balloon: Balloon, tenant: Tenant) -> None:
    """Do what is asked, if anything is, and answer: on the bell's thread, so that an engine without
    requests answers too."""
    order = tenant.order()
    if order is None:
        return
    try:
        outcome = _carry_out(Verb(order.verb), order.value, balloon)
    except (KvrtError, ValueError) as error:
        tenant.answer(order, Outcome.REFUSED, str(error))
    else:
        tenant.answer(order, outcome)


def _carry_out(verb: Verb, value: int, balloon: Balloon) -> Outcome:
    match verb:
        case Verb.LIMIT:
            done = balloon.set_limit(value)
        case Verb.GUARANTEE:  # the ledger has it; it is heeded before the next step
            done = True
        case Verb.RECLAIM:
            done = balloon.reclaim()
        case Verb.SLEEP | Verb.WAKE:
            raise KvrtError(
                "vLLM has no weights of kvrt's, and holds no KV memory while it is idle"
            )
    return Outcome.APPLIED if done else Outcome.DEFERRED
