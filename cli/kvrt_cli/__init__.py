"""kvrt on the command line.

    main       the `kvrt` group: signals, errors, exit codes
    run        answers prompts: `answer` one, `batch` a file of them, `repl` a conversation
    doctor     checks the machine and proves its devices; the checks are in `checks`
    bench      measures a whole model

    streams    standard streams that are closed or cannot be written
    errors     what went wrong, in the words of the command line
    naming     the model's name, and a prompt that stands in its place
    terminal   what goes to stdout and what to stderr, and in which colours
    options    the options that several commands share
    sampling   which sampling parameters apply
    stats      what a run cost
    docs       writes the option lists of docs/cli.md

Nothing here loads torch before a command needs it.
"""
