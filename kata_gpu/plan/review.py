"""A plan in words, for who is to agree to it."""

from kata_gpu.model.plan import CleanUnit, MoveGroup, Plan, Severity


def text(plan: Plan) -> str:
    """Return the plan as a person reviews it; ends with a newline."""
    count = len(plan.steps)
    todo = f"{count} step{'s' if count != 1 else ''}" if count else "nothing to do"
    lines = [f"blueprint {plan.blueprint}: {todo}"]
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"{number:3}  {step.headline}")
        if isinstance(step, MoveGroup):
            lines.extend(f"       {move}" for move in step.moves)
        if isinstance(step, CleanUnit):
            lines.extend(
                f"       {reset.address}  reset by {' or '.join(reset.methods) or 'nothing'}"
                for reset in step.resets
            )
        after = f"; after {', '.join(map(str, step.needs))}" if step.needs else ""
        lines.append(f"       because {step.reason}{after}")
    for severity in reversed(Severity):
        lines.extend(f"{severity}: {f}" for f in plan.findings if f.severity is severity)
    return "\n".join(lines) + "\n"
