"""How a server of language models does under load: any that speaks OpenAI's API, or a runtime in
this process.

    words      a run, and each of its requests, as values; the file that keeps them
    data       what is asked: conversations, drawn or read
    arrivals   when it is asked
    plan       a run from its plan to its result
    targets    what is asked: over HTTP (`http`), or in this process (`inside`)
    load       asks, and notes when each piece of an answer came
    figures    what came of it: times, rates, percentiles
    energy     what counters of energy say
    prices     what it costs, with the formula
    advice     what holds it back, and what to try
    statistics, comparing   how sure figures are; whether one run is better than another
    others     results of other programs
    page       a page with plots, which needs nothing else
    sheets     the same as CSV

`docs/bench.md` is the guide, and says what each figure means.
"""
