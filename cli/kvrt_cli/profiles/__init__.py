"""Settings of commands that do not stand on the command line: profiles, and the environment.

What may be set is what a command's own parameters say; there is no second list.

    keys        what a profile and the environment call a command's parameters
    document    a file of YAML as entries that know their lines
    find        a profile by its path or name
    settings    what a profile says about a command, checked as its flags are
    option      gives commands their --profile, and their variables
    origins     where each value of a call comes from
    calling     what a command would be called with
    preflight   whether what a profile asks for is here and fits
"""
