"""Wrong inputs, in kinds: each is one line and exit code 2, and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modicum import cli
from modicum.rewards import source

pytestmark = pytest.mark.usefixtures("quiet")

RUN = "train --steps 1 --eval-problems 0 --out run"
ROW = '{"question": "1+1?", "answer": "2"}\n'
ONE = "    return [1.0] * len(completions)\n"
MODULE = f"""
import sys
number = 3
class Term:
    def __call__(self, completions):
        return [1.0]
def needs(completions, solution):
{ONE}
def placed(completions, /):
{ONE}
def ones(completions):
{ONE}
"""
FILES: dict[str, str | bytes] = {
    "notes.txt": "thesis",
    "two words/mine.py": MODULE,
    "mine.py": MODULE,
    "syntax.py": "def f(:\n",
    "imports.py": "import no_such_library\n",
    "script.py": "import sys\nsys.exit(0)\n",
    "rows.jsonl": ROW * 12,
    "cut.jsonl": ROW + '{"question": "1+',
    "array.jsonl": "[1, 2]\n",
    "short.jsonl": ROW + '{"question": "1+2?"}\n',
    "keyless.jsonl": '{"prompt": "1+1?", "label": "2"}\n',
    "null.jsonl": '{"question": "1+1?", "answer": null}\n',
    "latin.jsonl": '{"question": "é", "answer": "2"}\n'.encode("latin-1"),
    "empty.jsonl": "",
    "semicolons.csv": "question;answer\n1+1?;2\n",
    "not.parquet": "text",
    "not.jsonl.gz": "text",
    "of table.toml": "learning_rate = 1e-4\n",
    "of other.toml": "[sampling]\nlearning_rate = 1e-4\n",
    "of trl.toml": "[batch]\nnum_generations = 8\n",
    "text.toml": 'steps = "3"\n',
    "date.toml": "steps = 2024-01-01\n",
    "true.toml": "steps = true\n",
    "nan.toml": "[optimizer]\nlearning_rate = nan\n",
    "scalar.toml": "sampling = 3\n",
    "array.toml": "[[sampling]]\ntop_p = 0.5\n",
    "list.toml": 'model = ["tiny"]\n',
    "twice.toml": "steps = 1\nsteps = 2\n",
    "dotted.toml": 'optimizer.learning_rate = "fast"\n',
    "yaml.toml": "steps: 3\n",
    "utf16.toml": "steps = 3\n".encode("utf-16"),
    "latin.toml": "# é\nsteps = 3\n".encode("latin-1"),
    "bom.toml": "\ufeffsteps = 'x'\n",
    "folder.toml/inside": "",
    "bert/config.json": json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}),
    "broken/config.json": "{",
    "typeless/config.json": "{}",
    "unknown/config.json": json.dumps({"model_type": "nonesuch"}),
    "adapter/adapter_config.json": json.dumps({"peft_type": "LORA"}),
    "full/thesis.txt": "mine",
    "other/config.toml": "theme = 'dark'\n",
    "study.toml": "question = 3\n",
    "half.json": '{"strict": ',
}
WRONG = [
    # Models
    (f"{RUN} --model nowhere/at/all", "there is no model folder nowhere/at/all"),
    (f"{RUN} --model notes.txt", "notes.txt"),
    (f"{RUN} --model full", "full is not a model folder"),
    (f"{RUN} --model bert", "not a causal language model (BertForMaskedLM)"),
    (f"{RUN} --model broken", "broken"),
    (f"{RUN} --model typeless", "model_type"),
    (f"{RUN} --model unknown", "nonesuch"),
    (f"{RUN} --model adapter", "adapter"),
    (f"{RUN} --model some/where", "HF_HUB_OFFLINE"),
    (f"{RUN} --model none.gguf", "none.gguf"),
    (f"{RUN} --model ~/none", "/none"),
    ("updates last(7)", "6 layers"),
    ("updates layers(6)", "there is no layer 6; they are 0 to 5"),
    ("plan --model full", "full is not a model folder"),
    # Problems
    (f"{RUN} --task file('none.jsonl')", "there is no file none.jsonl"),
    (f"{RUN} --task file('~/none.jsonl')", "/none.jsonl"),
    (f"{RUN} --task file(rows.jsonl)", "quotes are missing: 'rows.jsonl'"),
    (f"{RUN} --task rows.jsonl", "rows.jsonl"),
    (f"{RUN} --task file('cut.jsonl')", "cut.jsonl, line 2"),
    (f"{RUN} --task file('array.jsonl')", "array.jsonl, line 1"),
    (f"{RUN} --task file('short.jsonl')", "short.jsonl, line 2: 'answer' is missing"),
    (f"{RUN} --task file('keyless.jsonl')", "keyless.jsonl"),
    (f"{RUN} --task file('null.jsonl')", "'answer'"),
    (f"{RUN} --task file('latin.jsonl')", "UTF-8"),
    (f"{RUN} --task file('empty.jsonl')", "empty.jsonl"),
    (f"{RUN} --task file('semicolons.csv')", "semicolons.csv"),
    (f"{RUN} --task file('not.parquet')", "not.parquet"),
    (f"{RUN} --task file('not.jsonl.gz')", "not.jsonl.gz"),
    (f"{RUN} --task file('notes.txt')", "'notes.txt' must be a folder or end in .jsonl"),
    (f"{RUN} --task file('rows.jsonl',answr='x')", "no argument 'answr'"),
    (f"{RUN} --task file('rows.jsonl',answer='x')", "has no column 'x'"),
    (f"{RUN} --task arithmetic(terms=0)", "terms"),
    (f"{RUN} --task arithmetic+addition", "cannot be joined with +"),
    (f"{RUN} --task given('mine')", "was an object in Python"),
    # Rewards
    (f"{RUN} --reward acuracy", "did you mean 'accuracy'?"),
    (f"{RUN} --reward accuracy+accuracy", "accuracy is there twice"),
    (f"{RUN} --reward 0*accuracy", "must be above 0"),
    (f"{RUN} --reward 1e400*accuracy", "not inf"),
    (f"{RUN} --reward accuracy*format", "cannot be joined with *"),
    (f"{RUN} --reward accuracy-format", "is not allowed in an expression"),
    (f"{RUN} --reward 3", "reward '3' is a number"),
    (f"{RUN} --reward length", "length needs 'max_tokens'"),
    (f"{RUN} --reward none.py:f", "there is no file none.py"),
    (f"{RUN} --reward mine.py", "mine.py is no function; write path/to/file.py:function"),
    (f"{RUN} --reward mine.py:nones", "the module has no 'nones'; did you mean 'ones'?"),
    (f"{RUN} --reward mine.py:number", "'number' is no function but 3"),
    (f"{RUN} --reward mine.py:needs", "the problems have no column 'solution'"),
    (f"{RUN} --reward mine.py:placed", "'completions' is positional-only"),
    (f"{RUN} --reward builtins:max", "what it takes cannot be told"),
    (f"{RUN} --reward mine.py:Term.__call__", "no column 'self'"),
    (f"{RUN} --reward mine.py:ones(chats=True)", "no argument 'chats'"),
    (f"{RUN} --reward syntax.py:f", "(SyntaxError: invalid syntax"),
    (f"{RUN} --reward imports.py:f", "No module named 'no_such_library'"),
    (f"{RUN} --reward script.py:f", "cannot import 'script.py' (SystemExit: 0)"),
    (f"{RUN} --reward own-module:f", "'own-module:f' does not parse"),
    (f"{RUN} --reward|two words/mine.py:f", "two words/mine.py:f: the module has no 'f'"),
    (f"{RUN} --reward|two words/none.py:f", "'two words/none.py:f' does not parse"),
    # Settings
    (f"{RUN} --config|of table.toml", "unknown key 'learning_rate'; it belongs to [optimizer]"),
    (f"{RUN} --config|of other.toml", "sampling: unknown key 'learning_rate'; it belongs to"),
    (f"{RUN} --config|of trl.toml", "did you mean group_size in [batch]?"),
    (f"{RUN} --config text.toml", "text.toml: steps must be a whole number, not '3'"),
    (f"{RUN} --config date.toml", "not datetime.date(2024, 1, 1)"),
    (f"{RUN} --config true.toml", "steps must be a whole number, not True"),
    (f"{RUN} --config nan.toml", "learning_rate must be a number or nothing, not nan"),
    (f"{RUN} --config scalar.toml", "sampling must be a table"),
    (f"{RUN} --config array.toml", "sampling must be a table"),
    (f"{RUN} --config list.toml", "model must be a text, not ['tiny']"),
    (f"{RUN} --config twice.toml", "twice.toml is not TOML: Cannot overwrite a value"),
    (f"{RUN} --config dotted.toml", "optimizer: learning_rate must be a number or nothing"),
    (f"{RUN} --config yaml.toml", "yaml.toml is not TOML"),
    (f"{RUN} --config utf16.toml", "utf16.toml is in UTF-16"),
    (f"{RUN} --config latin.toml", "latin.toml, line 1 is not in UTF-8"),
    (f"{RUN} --config bom.toml", "bom.toml: steps must be a whole number"),
    (f"{RUN} --config folder.toml", "folder.toml cannot be read: Is a directory"),
    (f"{RUN} --config ~/none.toml", "/none.toml"),
    (f"{RUN} --config|", "argument --config: an empty text is no value"),
    (f"{RUN} --recipe|", "argument --recipe: an empty text is no value"),
    (f"{RUN} --recipe tinyzer", "did you mean 'tinyzero'?"),
    ("evaluate|", "argument RUN: an empty text is no value"),
    ("export --out new|", "argument RUN: an empty text is no value"),
    ("report|", "argument RUN: an empty text is no value"),
    ("recipes|", "argument RECIPE: an empty text is no value"),
    # Options
    (f"{RUN} --seed 1.5", "seed must be a whole number, not 1.5"),
    (f"{RUN} --learning-rate 1,5", "must be a number or nothing, not '1,5'"),
    (f"{RUN} --learning-rate nan", "must be a number or nothing, not nan"),
    (f"{RUN} --top-p 0", "top_p must be above 0"),
    (f"{RUN} --lr_scheduler_type cosine", "did you mean --schedule?"),
    (f"{RUN} --actor.optim.lr=1e-6", "did you mean --learning-rate?"),
    (f"{RUN} data.train_batch_size=8", "did you mean --prompts-per-step?"),
    (f"{RUN} --gpu 0", "did you mean --device 'cuda'?"),
    (f"{RUN} --load_in_4bit", "did you mean --quantise 'nf4'?"),
    (f"{RUN} --quiet", "unknown option '--quiet' (see"),
    (f"{RUN} --update last(1)+", "does not parse"),
    (f"{RUN} --update lora(rank=two)", "rank must be a whole number, not 'two'"),
    (f"{RUN} --objective grpo(clip=5)", "clip must be above 0 and below 1"),
    (f"{RUN} --curriculum easy_to_hard(stages=1)", "stages must be at least 2 and at most 100"),
    # Prompts and templates
    (f"{RUN} --template chatml", "template is 'chatml'; did you mean 'chat'?"),
    (f"{RUN} --template-args thinking", "must be name=value"),
    (f"{RUN} --template-args a=1,a=2", "each name once"),
    (f"{RUN} --style box", "did you mean 'boxed'?"),
    (f"{RUN} --examples -1", "examples must be at least 0"),
    (f"{RUN} --stop a --stop|", "an empty text beside others"),
    (f"{RUN} --task file('rows.jsonl') --examples 50", "examples = 50"),
    (f"{RUN} --max-prompt-tokens 0", "max_prompt_tokens must be at least 1"),
    # Folders
    ("train --steps 1 --out notes.txt", "notes.txt is a file, not a folder"),
    ("train --steps 1 --out notes.txt/run", "notes.txt is a file, not a folder"),
    ("train --steps 1 --out full", "full is not empty and no run folder; --out takes another"),
    ("train --steps 1 --out full --overwrite", "full is not empty and no run folder"),
    ("train --steps 1 --out other --overwrite", "other is not empty and no run folder"),
    ("train --steps 1 --out full --resume", "full is not a run folder"),
    ("train --steps 1 --out loop", "loop"),
    ("train --steps 1 --out nothing", "nothing is a link to nothing (gone)"),
    ("evaluate full", "full is not a run folder"),
    ("evaluate --out full", "full is not empty and holds no evaluation"),
    ("evaluate other", "other"),
    ("compare full", "full holds no evaluation"),
    ("compare full full full", "unknown option 'full'"),
    ("export --out full", "full is not empty"),
    ("export --out full --overwrite", "full holds no model"),
    ("export other --out new", "other"),
    ("study run study.toml", "study.toml"),
    ("study same full other", "full/analysis.json is missing"),
    ("grade none.jsonl", "none.jsonl: No such file or directory"),
    ("audit-reward --share 2", "share must be at least 0 and at most 1"),
    ("tasks file('rows.jsonl') --split validation", "split is 'validation'"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all the files, and two links that lead nowhere."""
    known, homes = list(sys.path), set(source.HOMES)
    folder = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "loop").symlink_to("loop")
    (folder / "nothing").symlink_to("gone")
    yield folder
    sys.path[:] = known  # other tests must not find the modules here
    source.HOMES.intersection_update(homes)


def held(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, but for what Python keeps of modules."""
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize(("line", "part"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_input_is_one_line_and_changes_nothing(
    line: str,
    part: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last argument stands behind a bar where it is empty or has blanks."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("modicum.machine.reset_peak", lambda: None)  # it collects all garbage
    before = held(place)
    words, bar, last = line.partition("|")
    assert cli._code_of([*words.split(), *([last] if bar else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert part in err
    assert held(place) == before
