"""Names of the study's files, shared by its work and its report."""


def picture_name(system: str, task: str, steps: int, method: str) -> str:
    """Return the name of a piece of pictures."""
    return f"images-{task.replace(' %', '').replace(' ', '-')}-{system}-{method}-{steps:03d}"
