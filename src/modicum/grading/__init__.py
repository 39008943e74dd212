"""How answers are found and compared; `modicum.answers` is the way in (docs/grading.md).

extraction      the final answer in a text
comparison      are two answers the same: by value, text, parts
quantities units intervals     numbers with units; inequalities as intervals
expressions     exact evaluation of arithmetic
lexer latex values algebra     formulas, and their equality at random points
symbolic equivalence           algebra in a child process with a time limit
"""
