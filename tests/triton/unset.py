"""Finds machine code of NVIDIA's that reads a uniform register which nothing has written.

ptxas 12.8 makes such code of a right program: of a matrix instruction's second operand whose
place in shared memory an earlier one with rows of another width had, it forgets the address. The
products are then of whatever memory the register happens to name.
"""

import re

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\S+) ([^;]*);")
REGISTER = re.compile(r"\bUR(\d+)\b")


def unset(code: str) -> list[str]:
    """The instructions that do, in the order in which the code lies: what cuobjdump -sass prints.

    Only what is first mentioned by a read is found, so that loops cannot mislead.
    """
    written: set[int] = set()
    found = []
    for name, text in INSTRUCTION.findall(code):
        operands = [operand.strip() for operand in text.split(",")]
        target = re.fullmatch(r"UR(\d+)", operands[0])
        read = _read(operands[1:] if target else operands)
        if not read <= written:
            found.append(f"{name} {text.strip()}")
        written |= read
        if target:
            first = int(target[1])
            written.update(range(first, first + (2 if re.search("64|WIDE", name) else 1)))
    return found


def _read(operands: list[str]) -> set[int]:
    described = next((each for each in operands if each.startswith("gdesc")), None)
    if described is None:
        return {int(number) for number in REGISTER.findall(",".join(operands))}
    # Two registers describe each operand in shared memory. If the first is in registers instead,
    # the two that stand for it mean nothing.
    first = int(REGISTER.findall(described)[0])
    in_registers = re.fullmatch(r"R\d+", operands[1]) is not None
    return set(range(first + (2 if in_registers else 0), first + 4))
