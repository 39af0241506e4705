"""kvrt on the command line.

    main       the `kvrt` group: signals, errors, exit codes

Commands, each in the module of its name; what they consist of besides:

    run        `prompts` of a file, `stdin`, `asking` the model, printing `answer` and `answers`;
               `repl`, a conversation; `stats`, what it cost; `devices`
    serve, batch, llama_server
               `beside`, models beside the one that answers; `meter`, how far a batch is
    embed, rerank, transcribe, merge, models
    show       `facts`
    doctor     `checks`
    bench      `benching`
    profile, tune
               `tuning`
    data, route, store
    top, ctl, usage
               `toppage`, what top shows of `tenants`
    config, profile_config
               `profiles`, files and variables that options are taken from

What all have in common:

    options    that several commands share
    terminal   what goes to stdout and what to stderr, and in which colours; `progress`, `jsontext`
    streams    standard streams that are closed or cannot be written
    errors     what went wrong, in the words of the command line
    extras     whether what a command needs is installed
    naming     the model's name, and a prompt that stands in its place
    docs       writes the option lists of docs/cli.md

Nothing here loads torch before a command needs it.
"""
