"""Sets of prompts and answers, a JSON object a line: read, cleaned, scored, kept, compared.

rows, reading     what a line says, whatever its shape; all lines of a file, one at a time
writing           a file that is there once it is whole, and beside it how it was made
shingles          texts as sets of what stands in them, and which sets may be alike
duplicates        rows that say what others say: the same, nearly, or by their meaning
scores            numbers on a row's texts; likelihood: what a model makes of its answer
expressions       which rows stay, by their scores
stats, sketch     what is in a set, at flat memory
versions          sets by what is in them, and where they come from
labels            to Label Studio and back
compare, judge    two models' answers, and which are better
intervals         how sure that is
"""
