"""One training as one writes it by hand: transformers' Trainer, on running text or on instructions.

    python train.py ct|sft MODEL DATA OUT TOKENS REPLAY

DATA: JSON lines of {"text"} (ct), of {"prompt", "output", "more": further ones} (sft). REPLAY: English text, one token
in five (ct) or in four (sft).
"""

import json
import random
import sys

import transformers
from datasets import Dataset

RATE, WARMUP, REPLAYED = {"ct": (7e-4, 0.01, 0.2), "sft": (5e-4, 0.05, 0.25)}[sys.argv[1]]
BATCH_TOKENS, BLOCK = 500, 250
SCHEDULE_TOKENS = 450_000  # where CT's learning rate ends, whatever the budget


def rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def blocks(path, tokenizer, wanted):
    ids = []
    for row in rows(path):
        ids += [*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= wanted:
            break
    return [ids[start : start + BLOCK] for start in range(0, min(len(ids), wanted) - BLOCK + 1, BLOCK)]


def text(path, tokenizer, tokens):
    return [{"input_ids": block, "labels": block} for block in blocks(path, tokenizer, tokens)]


def instructions(path, tokenizer, tokens):
    made, total = [], 0
    examples = rows(path)
    random.Random(0).shuffle(examples)
    while total < tokens:
        for row in examples:
            ids, labels = [], []
            for turn in [row, *row.get("more", [])]:
                prompt = tokenizer(turn["prompt"], add_special_tokens=False)["input_ids"]
                answer = tokenizer(" " + turn["output"], add_special_tokens=False)["input_ids"]
                ids += prompt + answer
                labels += [-100] * len(prompt) + answer
            ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
            made.append({"input_ids": ids[-BLOCK:], "labels": labels[-BLOCK:]})
            total += len(made[-1]["input_ids"])
            if total >= tokens:
                break
    return made


def main():
    kind, folder, data, out, tokens, replay = *sys.argv[1:5], int(sys.argv[5]), sys.argv[6]
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    english = round(REPLAYED * tokens)
    made = (text if kind == "ct" else instructions)(data, tokenizer, tokens - english)
    made += text(replay, tokenizer, english)
    random.Random(0).shuffle(made)
    length = sum(len(row["input_ids"]) for row in made) / len(made)
    batch = max(1, round(BATCH_TOKENS / length))
    steps = len(made) // batch
    horizon = max(steps, SCHEDULE_TOKENS // BATCH_TOKENS) if kind == "ct" else steps
    arguments = transformers.TrainingArguments(
        output_dir=f"{out}.work", max_steps=horizon, per_device_train_batch_size=batch, learning_rate=RATE,
        warmup_steps=max(1, round(WARMUP * horizon)), lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1}, adam_beta2=0.95, weight_decay=0.0, seed=0, use_cpu=True,
        save_strategy="no", report_to="none", logging_steps=10,
    )  # fmt: skip
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(made), data_collator=collator
    )
    trainer.add_callback(StopAt(steps))
    trainer.train()
    trainer.save_model(out)
    tokenizer.save_pretrained(out)


class StopAt(transformers.TrainerCallback):
    """Ends at the budget: the schedule continues to its own end."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.steps


main()
