"""Small lm-eval tasks in Tamil in a folder: choices, sums (mgsm), translations (flores) and headlines (xlsum).

Nothing of them is downloaded. Their data stand in this file; where answers of a random model shall be right at times,
targets are written after it has answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QUESTIONS = (
    *("நீர் எங்கே ஓடுகிறது?", "மலை உயரமா?", "வீடு பெரியதா?", "ஆறு ஆழமா?", "பறவை பறக்கிறதா?", "மரம் பச்சையா?"),
    *("மழை பெய்கிறதா?", "கடல் நீலமா?"),
)
WORDS = ("நீர்", "மலை", "வீடு", "ஆறு")
SHOTS = 4  # examples of the split train
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/{name}.test.jsonl", train: "{folder}/{name}.train.jsonl"}}}}
test_split: test
fewshot_split: train
task: {name}
metadata: {{version: 1, language: tam}}
"""
TASKS = {
    "choice_tam": """
output_type: multiple_choice
doc_to_text: "கேள்வி: {{question}}\\nவிடை:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "mgsm_tam": """
output_type: generate_until
doc_to_text: "கேள்வி: {{question}}\\nவிடை:"
doc_to_target: target
generation_kwargs: {until: ["கேள்வி:"], do_sample: false, max_gen_toks: 10}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "^\\\\s*(\\\\S+)"}, {function: take_first}]}
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(\\\\S+)"}, {function: take_first}]
""",
    "flores_tam": """
output_type: generate_until
doc_to_text: "மொழிபெயர்: {{question}}\\n"
doc_to_target: target
description: "ஆங்கிலத்திலிருந்து தமிழுக்கு.\\n"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 10}
metric_list: [{metric: bleu}, {metric: ter}, {metric: chrf}]
metadata: {version: 1, language: tam, primary: chrf}
""",
    "xlsum_tam": """
output_type: generate_until
doc_to_text: "கட்டுரை: {{question}} {{question}}\\nதலைப்பு:"
doc_to_target: target
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8}
process_results: !function rouge.process_results
metric_list: [{metric: rougeL, aggregation: mean, higher_is_better: true}]
""",
}
ROUGE = '''
"""rouge_score's own tokenizer keeps a to z and 0 to 9 alone, which leaves nothing of Tamil."""
def process_results(document, results):
    from rouge_score.rouge_scorer import RougeScorer

    class Words:
        def tokenize(self, text):
            return text.split()

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return {"rougeL": scorer.score(document["target"], results[0])["rougeL"].fmeasure}
'''


def write(
    folder: Path, names: Sequence[str] = tuple(TASKS), targets: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """The folder of some of the tasks. targets: of the test documents of a task, instead of a word each."""
    folder.mkdir(exist_ok=True)
    (folder / "rouge.py").write_text(ROUGE, encoding="utf-8")
    for name in names:
        common, own = COMMON.format(folder=folder, name=name), TASKS[name]
        if "metadata:" in own:
            common = common.partition("metadata:")[0]
        (folder / f"{name}.yaml").write_text(common + own, encoding="utf-8")
        for split, chosen in (("train", QUESTIONS[:SHOTS]), ("test", QUESTIONS[SHOTS:])):
            rows: list[dict[str, Any]] = [
                {"question": question, "choices": list(WORDS), "answer": place % 4, "target": WORDS[place % 4]}
                for place, question in enumerate(chosen)
            ]
            if split == "test" and targets and name in targets:
                for row, target in zip(rows, targets[name], strict=True):
                    row["target"] = target
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.{split}.jsonl").write_text(lines, encoding="utf-8")
    return folder
