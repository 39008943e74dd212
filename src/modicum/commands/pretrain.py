"""`modicum pretrain`."""

from pathlib import Path

from modicum.options import Parser, show
from modicum.types import UserError

EXAMPLES = """
modicum pretrain --out models/my-tiny
modicum pretrain --out models/quick --steps 100
modicum train --model models/my-tiny
"""
REPORT_EVERY = 20  # steps


def run(args: list[str]) -> int:
    """Pretrain a tiny base model; a run that was cut goes on."""
    from modicum.models.corpus import PretrainConfig

    parser = Parser(
        "pretrain", "Make a tiny base model; without options, the shipped one.", EXAMPLES
    )
    parser.add_argument("--out", metavar="FOLDER", help="the model folder to write; needed")
    found, config = parser.options(args, PretrainConfig, "pretraining")
    if not found.out:
        raise UserError("pretrain needs --out FOLDER")
    out = Path(found.out)
    if (out / "model.safetensors").exists():
        raise UserError(f"{out} holds a finished model; --out takes another folder")

    from modicum import lock
    from modicum.display import clock, console
    from modicum.models.pretrain import pretrain
    from modicum.runs import make_folder

    screen = console()
    losses: list[float] = []

    def report(step: int, loss: float, pace: float, left: float) -> None:
        losses.append(loss)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == config.steps:
            recent = losses[-REPORT_EVERY:]
            mean = sum(recent) / len(recent)
            screen.print(
                f"step {step + 1}/{config.steps}  loss {mean:.3f} nats/token"
                f"  {pace:,.0f} tok/s  left {clock(left)}"
            )

    make_folder(out)
    with lock.held(out):
        pretrain(config, out, report)
    values = {"out": str(out), "loss": losses[-1], "steps": config.steps}
    show(found.json, values, f"wrote {out}")
    return 0
