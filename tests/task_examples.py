"""An expression, and small files if it needs them, for each task that has no default one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

GSM8K = Path(__file__).parent / "data" / "gsm8k"


def write_jsonl(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def example_file(folder: Path) -> str:
    rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(200)]
    return f"file({write_jsonl(folder / 'problems.jsonl', rows)!r})"


def example_hub(folder: Path) -> str:
    """A data set as the library `datasets` saves it, which needs neither hub nor cache."""
    import datasets

    rows = [{"question": f"What is {i} + {i}?", "answer": 2 * i} for i in range(200)]
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return f"hub({str(folder / 'saved')!r})"


def math_row(number: int) -> dict[str, Any]:
    """A row as MATH has them: the last box of the solution is the answer."""
    return {
        "problem": f"What is ${number}$ divided by $7$?",
        "level": f"Level {number % 5 + 1}",
        "type": ["Algebra", "Counting & Probability"][number % 2],
        "solution": rf"Not \boxed{{0}}. It is $\boxed{{\frac{{{number}}}{{7}}}}$.",
    }


def example_math(folder: Path) -> str:
    write_jsonl(folder / "train.jsonl", [math_row(n) for n in range(100, 200)])
    write_jsonl(folder / "test.jsonl", [math_row(n) for n in range(200, 240)])
    return f"math({str(folder)!r})"


def example_math500(folder: Path) -> str:
    rows = [
        {**math_row(n), "level": n % 5 + 1, "answer": f"{n}/7", "unique_id": f"test/{n}.json"}
        for n in range(200)
    ]
    return f"math500({write_jsonl(folder / 'problems.jsonl', rows)!r}, split='hash')"


def example_openthoughts(folder: Path) -> str:
    rows = [
        {
            "problem": row["problem"],
            "ground_truth_solution": row["solution"],
            "domain": "math",
            "deepseek_reasoning": "so it is \\boxed{1}",
        }
        for row in map(math_row, range(150))
    ]
    return f"openthoughts({write_jsonl(folder / 'problems.jsonl', rows)!r})"


def example_contest(name: str) -> Callable[[Path], str]:
    def example(folder: Path) -> str:
        rows = [{"id": i, "problem": f"Find {i}.", "answer": float(i)} for i in range(100)]
        return f"{name}({write_jsonl(folder / 'problems.jsonl', rows)!r}, split='hash')"

    return example


EXAMPLES: dict[str, Callable[[Path], str]] = {
    "aime": example_contest("aime"),
    "amc": example_contest("amc"),
    "file": example_file,
    "gsm8k": lambda folder: f"gsm8k({str(GSM8K)!r})",
    "gym": lambda folder: "gym('chain_sum', min_terms=4)",
    "hub": example_hub,
    "math": example_math,
    "math500": example_math500,
    "openthoughts": example_openthoughts,
}
