"""How answers are found and compared; `modicum.answers` is the way in (docs/grading.md).

extraction      the final answer in a text
comparison      are two answers the same: by value, text, parts
spelling parts intervals       one spelling of signs; members of lists; sets of reals
quantities units               numbers with units
expressions     exact evaluation of arithmetic
lexer latex values algebra     formulas, and their equality at random points
symbolic equivalence           algebra in a child process with a time limit
"""
