r"""Compare formulas in a child process with a time limit.

    parent   equal(gold, answer, seconds) ──▶ {"gold": ..., "answer": ..., "seconds": ...}
    child    modicum.grading.equivalence  ◀── {"same": true}

The text of a model can make an algebra system hang or fill the memory. So the work is done
in a process that is killed at the limit and started again when it is next needed
(`modicum.child`); neither torch nor sympy is imported here. It ends when its pipe closes,
however the parent ended.
"""

from functools import lru_cache

from modicum.child import Child, ChildFailed

MAX_ANSWERS = 5000  # of one child, before a new one takes its place

child = Child("-m", "modicum.grading.equivalence")


@lru_cache(maxsize=4096)
def equal(gold: str, answer: str, seconds: float) -> bool:
    """Whether algebra finds `gold` and `answer` equal within `seconds`; False if it ends badly.

    Raises UserError if no child can be started.
    """
    with child.lock:
        try:
            question = {"gold": gold, "answer": answer, "seconds": seconds}
            return child.ask(question, seconds)["same"]
        except ChildFailed:
            return False
        finally:
            if child.num_asked >= MAX_ANSWERS:
                child.close()
