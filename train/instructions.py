"""stub"""
def prompt(instruction: str, text: str) -> str:
    """An instruction as the model sees it, up to the answer: the text first, then what is asked, so that the question stands next to the answer."""
    return "\n".join(part for part in (text, instruction, "Answer:") if part)
