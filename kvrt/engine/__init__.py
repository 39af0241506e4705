"""From a request to its answer: the step, what leads to it, and what becomes of its logits.

prompts     what callers ask with, as tokens that were checked
request     one request on its way
output      one of its completions as it grows
mailbox     what callers send to the engine's thread, and who waits for an answer
worker      the engine's thread: all that touches the device, from opening to closing
assembly    a runtime's parts, made as its options say and put together
sizing      how much memory the KV cache may take
fingerprint what says that two pages of the same tokens have the same bytes
engine      plan, apply, run, commit: a step at a time
live        the sequences there are, and the requests they belong to
forward     one pass of the model, in pieces where memory is short
answers     what the logits of a step become, and whom it is told
sampler     the next token of a row of logits, by seed and position
beaming     beams, of the same logits
stops       stop strings in text that grows
prefixes    pin and invalidate, on the engine's thread
snapshots   save and load, beside it
stats       where a runtime stands
process     which process something belongs to
"""
