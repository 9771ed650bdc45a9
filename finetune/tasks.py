"""The tasks by name. A task is one module, and one entry here; `run.py` treats all alike."""

from finetune import classification, expression, hscr, splice
from finetune.task import Task

TASKS: dict[str, Task] = {
    "promoter": classification.PROMOTER,
    "tfbs": classification.TFBS,
    "hscr": hscr.HSCR,
    "splice": splice.SPLICE,
    "expression": expression.EXPRESSION,
}
