"""Structured output: what an answer may say is given by a schema, a pattern or a grammar.

    constraint   what is asked for: a value
    grammar      how a constraint reads in llguidance's language
    trial        the first to compile it is another process, which can be killed
    child        that process
    guides       what is compiled, for all requests of a runtime
    guide        one completion: which tokens may come next, and whether it is whole
    reasons      what may be told of errors

Needs the extra ``structured`` (llguidance: a lexer of derivatives and an Earley parser, whose work
for a token is bounded).
"""
