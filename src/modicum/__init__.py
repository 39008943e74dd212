"""modicum: how little of a language model must reinforcement learning update?"""
