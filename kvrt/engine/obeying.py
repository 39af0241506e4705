"""What an engine does when somebody outside asks it to, through the ledger of a shared device."""

from kvrt.engine.engine import Engine
from kvrt.engine.sizing import set_limit
from kvrt.engine.sleeping import Sleeper
from kvrt.errors import KvrtError
from kvrt.kv.limit import LimitChange
from kvrt.sharing.orders import Outcome, Verb
from kvrt.spi import DeviceInfo

DEEPEST = 2


def obey(engine: Engine, sleeper: Sleeper, info: DeviceInfo) -> None:
    """Do what is asked, if anything is, and answer. On the engine's thread, between two steps."""
    tenant = engine.memory.tenant
    order = None if tenant is None else tenant.order()
    if tenant is None or order is None:
        return
    try:
        outcome = _carry_out(Verb(order.verb), order.value, engine, sleeper, info)
    except (KvrtError, ValueError) as error:
        tenant.answer(order, Outcome.REFUSED, str(error))
    else:
        tenant.answer(order, outcome)


def _carry_out(
    verb: Verb, value: int, engine: Engine, sleeper: Sleeper, info: DeviceInfo
) -> Outcome:
    match verb:
        case Verb.LIMIT:
            change = set_limit(engine.cache, engine.model.weight_bytes, value, info)
            return Outcome.APPLIED if change is LimitChange.APPLIED else Outcome.DEFERRED
        case Verb.GUARANTEE:  # the ledger has it; it is heeded before the next step
            return Outcome.APPLIED
        case Verb.RECLAIM:
            engine.give_back()
        case Verb.SLEEP:
            sleeper.sleep(min(value, DEEPEST))
        case Verb.WAKE:
            sleeper.wake()
    return Outcome.APPLIED
