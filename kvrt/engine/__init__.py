"""From a request to its answer: the step, what leads to it, and what becomes of its logits.

prompts     what callers ask with, as tokens that were checked; `pictures` in them
intake      a request made of what a caller asks, in the caller's thread
request     one request on its way
output      one of its completions as it grows
mailbox     what callers send to the engine's thread, and who waits for an answer
worker      the engine's thread: all that touches the device, from opening to closing
assembly    a runtime's parts, made as its options say and put together
sizing      how much memory the KV cache may take
weighing, planning
            what a model takes, and how many texts fit beside it, before it is loaded
fingerprint what says that two pages of the same tokens have the same bytes
engine      plan, apply, run, commit: a step at a time
live        the sequences there are, and the requests they belong to
queue       who of them waits, and why
forward     one pass of the model, in pieces where memory is short
sight       what it sees in place of embeddings
guessing    drafts by a model, for all sequences of a step; `drafter`: which model may make them
answers     what the logits of a step become, and whom it is told
sampler     the next token of a row of logits, by seed and position
beaming     beams, of the same logits
stops       stop strings in text that grows
prefixes    pin and invalidate, on the engine's thread
snapshots   save and load, beside it
adapters    those that are loaded, by their names
neighbours  what it asks of other tenants of its device, and does for them
obeying     what it does when somebody outside asks it to
sleeping    what an idle model gives back, and takes again
events      what those are told who watch; `spans`: what a step's time goes into
stats       where a runtime stands
process     which process something belongs to
"""
