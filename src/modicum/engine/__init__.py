"""The engine: sampling completions and computing their log-probs."""
