"""Speculation: guesses at a sequence's next tokens, to be verified several in one step.

    tokens      ... for line in file : ... for line in        the same two tokens, seen before
                             |---------------|
    drafts                                            file :

Verification draws at each position what the sampler would draw there, and goes on while that is
what was guessed (Leviathan et al. 2023, arXiv 2211.17192, for draws that are functions of seed and
position). So drafts decide how many steps a text takes, and never what it says.

    lookup      guesses from the text itself, for nothing but the look
    drafter     one sequence's guesses: how often they came true, and so how many are worth it
    cost        what a further token of a step costs, which the worth is compared with
    gain        what tokens that a small model drafts are worth
    drafts      a tree of guesses, as a step computes and verifies it

Values: no device, no tensors. Which drafts go into a step is decided in `kvrt.sched.speculation`.
"""
